#define REGISTER_BYTES 16
#define CSR_ROW_LOOPS csr_row_loops_default
#include "csr_row_loops.h"

#define REGISTER_BYTES 16
#define BLOCK_LOOPS block_loops_default
#include "block_sparse_linear_loops.h"

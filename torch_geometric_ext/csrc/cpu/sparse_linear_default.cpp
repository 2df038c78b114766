#define REGISTER_BYTES 16
#define TILE_LOOPS tile_loops_default
#include "sparse_linear_loops.h"

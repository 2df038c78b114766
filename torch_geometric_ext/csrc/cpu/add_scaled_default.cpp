#define ADD_SCALED add_scaled_default
#include "add_scaled_loop.h"

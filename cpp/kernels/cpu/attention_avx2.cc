#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>
#include <utility>

#include "kernels/cpu/attention_unit.h"
#include "kernels/cpu/convert.h"

namespace kvctl {
namespace {

#include "kernels/cpu/vec_avx2.h"
//
#include "kernels/cpu/attention_micro.h"
//
#include "kernels/cpu/attention_scratch.h"
//
#include "kernels/cpu/attention_ahead.h"
//
#include "kernels/cpu/attention_tile.h"
//
#include "kernels/cpu/attention_kernel.h"
//
#include "kernels/cpu/attention_observe.h"

}  // namespace

const AttentionKernels kAttentionAvx2 = {kLanes, ScratchFloats, Attend, Finish, Observe};

}  // namespace kvctl

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>
#include <utility>

#include "kernels/convert.h"
#include "kernels/cpu/attention/attention_unit.h"

namespace kvctl {
namespace {

#include "kernels/cpu/simd/vec_avx2.h"
//
#include "kernels/cpu/attention/attention_micro.h"
//
#include "kernels/cpu/attention/attention_scratch.h"
//
#include "kernels/cpu/attention/attention_ahead.h"
//
#include "kernels/cpu/attention/attention_tile.h"
//
#include "kernels/cpu/attention/attention_kernel.h"
//
#include "kernels/cpu/attention/attention_observe.h"

}  // namespace

const AttentionKernels kAttentionAvx2 = {kLanes, ScratchFloats, Attend, Finish, Observe};

}  // namespace kvctl

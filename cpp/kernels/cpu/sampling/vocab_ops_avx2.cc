#include <immintrin.h>

#include "core/sampling/vocab_ops.h"
#include "core/support/exact_math.h"
#include "kernels/convert.h"
#include "kernels/cpu/sampling/vocab_units.h"

namespace kvctl {
namespace {

#include "kernels/cpu/simd/vec_avx2.h"
//
#include "kernels/cpu/sampling/vocab_vec_avx2.h"
// Over the types of the two above:
#include "kernels/cpu/sampling/vocab_vectors.h"
// Made of those:
#include "kernels/cpu/sampling/vocab_loops.h"

}  // namespace

const VocabOps& Avx2VocabOps() {
  static const VocabOps ops = LoopTable();
  return ops;
}

}  // namespace kvctl

// Intrinsics of GCC 12 pass an undefined operand on purpose and warn of it (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>

#include "core/sampling/vocab_ops.h"
#include "core/support/exact_math.h"
#include "kernels/convert.h"
#include "kernels/cpu/sampling/vocab_units.h"

namespace kvctl {
namespace {

#include "kernels/cpu/simd/vec_avx512.h"
//
#include "kernels/cpu/sampling/vocab_vec_avx512.h"
// Over the types of the two above:
#include "kernels/cpu/sampling/vocab_vectors.h"
// Made of those:
#include "kernels/cpu/sampling/vocab_loops.h"

}  // namespace

const VocabOps& Avx512VocabOps() {
  static const VocabOps ops = LoopTable();
  return ops;
}

}  // namespace kvctl

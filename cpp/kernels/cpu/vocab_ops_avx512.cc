// Intrinsics of GCC 12 pass an undefined operand on purpose and warn of it (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>

#include "core/exact_math.h"
#include "core/vocab_ops.h"
#include "kernels/cpu/convert.h"
#include "kernels/cpu/vocab_units.h"

namespace kvctl {
namespace {

#include "kernels/cpu/vec_avx512.h"
#include "kernels/cpu/vocab_vec_avx512.h"
// Over the types of the two above:
#include "kernels/cpu/vocab_vectors.h"
// Made of those:
#include "kernels/cpu/vocab_loops.h"

}  // namespace

const VocabOps& Avx512VocabOps() {
  static const VocabOps ops = LoopTable();
  return ops;
}

}  // namespace kvctl

#include <immintrin.h>

#include "core/exact_math.h"
#include "core/vocab_ops.h"
#include "kernels/cpu/convert.h"
#include "kernels/cpu/vocab_units.h"

namespace kvctl {
namespace {

#include "kernels/cpu/vec_avx2.h"
#include "kernels/cpu/vocab_vec_avx2.h"
// Over the types of the two above:
#include "kernels/cpu/vocab_vectors.h"
// Made of those:
#include "kernels/cpu/vocab_loops.h"

}  // namespace

const VocabOps& Avx2VocabOps() {
  static const VocabOps ops = LoopTable();
  return ops;
}

}  // namespace kvctl

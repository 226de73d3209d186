/*!
 * \file kernels/linear.h
 * \brief y = x Wᵀ (+ r) for few rows, with weights packed once for the machine they run on.
 *
 * Decoding and verifying read every weight of a model for a few rows, so DRAM bandwidth bounds
 * their speed. Weights are laid out in panels of a few output columns, k-major within a panel: a
 * thread reads its panels as one sequential stream.
 *
 * kvctl's own kernels sum each output over k in ascending order, one fused multiply-add at a time
 * (a multiplication and an addition on machines without FMA), for any number of rows and threads. A
 * row's result is bitwise the same alone or in a batch, decoded or verified. oneDNN guarantees
 * less; see LinearBackend.
 */
#ifndef KVCTL_KERNELS_LINEAR_H_
#define KVCTL_KERNELS_LINEAR_H_

#include <cstddef>
#include <cstdint>
#include <vector>

namespace kvctl {

/*! \brief How weights are stored; sums are float32 either way. */
enum class WeightType : int32_t {
  kFloat32 = 0,
  kBFloat16 = 1,
  kInt8 = 2,  //!< blocks of 32 with a scale, see quantized_blocks.h; k must be a multiple of 32
  kInt4 = 3,  //!< the same with 4 bits
  kInt4Offset = 4,  //!< blocks with a scale and an offset, which only PackBlocks packs
  kInt8Parts = 5    //!< blocks with two scales and an offset, which only PackBlocks packs
};

/*! \brief The library that multiplies. */
enum class LinearBackend : int32_t {
  kOwn = 0,    //!< kvctl's kernels: row results are bitwise independent of the number of rows
  kAmx = 2,    //!< kvctl's kernels with tiles (bfloat16 weights only), which keep 16 bits of an
               //!< input; row results are bitwise independent of the number of rows
  kOneDNN = 1  //!< oneDNN (float32 only): bitwise independent for 1..64 rows with AVX-512, as
               //!< measured; not on AVX2
};

/*!
 * \brief The backend that new weights are packed for: tiles for bfloat16 where CpuHasTiles(), else
 * kvctl's own. The environment variable KVCTL_LINEAR=onednn asks for oneDNN where the plugin is
 * installed, for float32; read once.
 *
 * A model decodes, verifies and prefills on one backend, since another one's sums have other bits.
 * On AVX-512 the own kernels took less processor time than oneDNN for 1 to 3 rows and for 8 and
 * more, up to a fifth less, and up to an eighth more for 4 to 7 rows and for prompts of hundreds.
 */
LinearBackend ChooseLinearBackend(WeightType type);

/*! \brief A kernel that multiplies weights of a type, and the number of rows that it begins at. */
struct LinearKernel {
  const char* name;
  int64_t rows;
};

/*!
 * \brief The kernels for weights of a type that are packed from now on, by ascending rows.
 *
 * Which one serves how many rows is a table of what a benchmark measured
 * (benchmarks/python/bench_linear.py), not a rule about instruction sets. All kernels of a type
 * give a row the same bits.
 */
std::vector<LinearKernel> LinearKernels(WeightType type);

/*!
 * \brief Bytes of a packed (n, k) weight on this machine.
 *
 * Throws kValue when n or k is not positive, the size does not fit, or k is not a whole number of
 * blocks.
 */
size_t PackedLinearBytes(int64_t n, int64_t k, WeightType type, LinearBackend backend);

/*!
 * \brief Packs a row-major float32 (n, k) weight (n outputs, k inputs) for this machine.
 * \param packed PackedLinearBytes(...) bytes, aligned to 64. Do not save it: the layout depends on
 * the machine.
 */
void PackLinear(const float* weight, int64_t n, int64_t k, WeightType type, LinearBackend backend,
                void* packed);

/*! \brief The contents of a packed weight. */
struct PackedLinearInfo {
  int64_t n = 0;  //!< outputs
  int64_t k = 0;  //!< inputs
  WeightType type = WeightType::kFloat32;
  LinearBackend backend = LinearBackend::kOwn;
};

/*!
 * \brief Reads the header of a packed weight.
 *
 * Throws kValue if the bytes are not a complete weight packed by this library on this machine.
 */
PackedLinearInfo InspectPackedLinear(const void* packed, size_t bytes);

/*!
 * \brief out = x Wᵀ + addend.
 * \param x (m, k) float32, row-major.
 * \param packed A weight for which InspectPackedLinear did not throw.
 * \param addend (m, n) float32 or nullptr; may be out itself.
 * \param out (m, n) float32, row-major; must not overlap x.
 */
void Linear(const float* x, int64_t m, const void* packed, const float* addend, float* out);

}  // namespace kvctl

#endif  // KVCTL_KERNELS_LINEAR_H_

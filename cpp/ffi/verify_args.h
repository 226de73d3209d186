/*!
 * \file ffi/verify_args.h
 * \brief The tensors of a verify call, checked, as the structures that kernels take.
 */
#ifndef KVCTL_FFI_VERIFY_ARGS_H_
#define KVCTL_FFI_VERIFY_ARGS_H_

#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/optional.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <vector>

#include "core/verify/tree_verifier.h"

namespace kvctl {

using tvm::ffi::TensorView;
using MaybeTensor = tvm::ffi::Optional<TensorView>;

constexpr DLDevice kHostDevice{kDLCPU, 0};
/*! \brief An extent that may have any value. */
constexpr int64_t kAny = -1;

/*! \throws Error kValue unless low <= value <= high. */
int64_t InRange(int64_t value, int64_t low, int64_t high, const char* name);
/*! \brief The position of a root, which Philox holds in 32 bits. `least` is -1 where the root is
 * only implied. */
uint32_t RootPosition(int64_t position, int64_t sequence, int64_t least);
int32_t VocabSize(int64_t size);

void* Pointer(const TensorView& tensor);
/*! \throws Error kValue unless the tensor is contiguous, on this device and of this shape. */
void CheckShape(const TensorView& tensor, const char* name, std::initializer_list<int64_t> shape,
                DLDevice device = kHostDevice);
/*! \brief A tensor's elements, after a check of type and shape. */
template <typename T>
const T* Data(const TensorView& tensor, const char* name, std::initializer_list<int64_t> shape);
template <typename T>
T* MutableData(const TensorView& tensor, const char* name, std::initializer_list<int64_t> shape) {
  return const_cast<T*>(Data<T>(tensor, name, shape));
}
/*! \brief n lists of elements, one after another; all of them empty where no tensors were given. */
template <typename T>
struct Ragged {
  /*! \param ptr (n + 1) int64, ascending from 0 to the number of values. */
  Ragged(const MaybeTensor& ptr, const MaybeTensor& values, const char* name, int64_t n);

  const T* begin(int64_t i) const { return ptr == nullptr ? nullptr : values + ptr[i]; }
  const T* end(int64_t i) const { return ptr == nullptr ? nullptr : values + ptr[i + 1]; }

  const int64_t* ptr = nullptr;
  const T* values = nullptr;
};

/*! \brief Checks that a tensor is a contiguous matrix on a device. */
void CheckMatrix(const TensorView& tensor, const char* name, DLDevice device = kHostDevice);
/*! \brief float32, float16 or bfloat16; for distributions float32 or float64. */
DType FloatRowType(const TensorView& tensor, const char* name, bool distribution);
const void* RowPointer(const TensorView& matrix, int64_t row);

/*! \brief Sampling parameters: one for all, or one each. */
class SamplingTable {
 public:
  /*!
   * \param table (1 or n, 7): temperature, top_k, top_p, min_p, repetition, presence, frequency
   * penalty.
   * \param bias_ptr int64, with bias_ids int32 and bias_values float32: lists per row of the table.
   */
  SamplingTable(const TensorView& table, const MaybeTensor& bias_ptr, const MaybeTensor& bias_ids,
                const MaybeTensor& bias_values, int32_t vocab_size, int64_t n);

  int64_t size() const { return static_cast<int64_t>(samplings_.size()); }
  const Sampling& operator[](int64_t i) const { return samplings_[size() == 1 ? 0 : i]; }

 private:
  std::vector<Sampling> samplings_;
};

/*! \brief The trees of a batch and what goes with them. Holds pointers into the caller's tensors.
 */
class VerifyBatch {
 public:
  /*! \brief See kvctl.verify.run; checks every node's token, parent, row and kind. The target, and
   * dense draft distributions with it, may be on any device; nothing else. */
  VerifyBatch(const TensorView& target, bool probabilities, const TensorView& nodes,
              const TensorView& ptrs);
  void SetDraft(const MaybeTensor& probs, const MaybeTensor& ids, bool per_node);
  void SetSampling(const TensorView& table, const MaybeTensor& bias_ptr,
                   const MaybeTensor& bias_ids, const MaybeTensor& bias_values);
  /*! \brief Thresholds of typical acceptance. */
  void SetThresholds(double epsilon, double delta);
  void SetHistory(const MaybeTensor& ptr, const MaybeTensor& ids);
  void SetBitmask(const MaybeTensor& bitmask);

  int64_t size() const { return static_cast<int64_t>(inputs_.size()); }
  int64_t num_nodes() const { return node_ptr_[size()]; }
  int64_t node_begin(int64_t sequence) const { return node_ptr_[sequence]; }
  int64_t num_samplings() const { return samplings_->size(); }
  int32_t vocab_size() const { return vocab_; }
  const SequenceInput& input(int64_t sequence) const { return inputs_[sequence]; }

 private:
  int32_t vocab_;
  DLDevice device_;  // of the target
  int64_t num_rows_;
  const int64_t* node_ptr_;
  const int64_t* row_ptr_;
  std::vector<Drawn> drawn_;
  std::vector<SequenceInput> inputs_;
  std::optional<SamplingTable> samplings_;
};

}  // namespace kvctl

#endif  // KVCTL_FFI_VERIFY_ARGS_H_

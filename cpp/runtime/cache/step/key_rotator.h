/*!
 * \file runtime/cache/step/key_rotator.h
 * \brief Rotary position embedding of a cache: by kvctl's own rotation or the model library's.
 */
#ifndef KVCTL_RUNTIME_CACHE_STEP_KEY_ROTATOR_H_
#define KVCTL_RUNTIME_CACHE_STEP_KEY_ROTATOR_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/cache/step_plan.h"
#include "kernels/rope.h"
#include "kvctl/paged_kv_cache.h"
#include "runtime/cache/step/kv_rows.h"

namespace kvctl {

/*!
 * \brief Rotates q and K of new tokens, and keys that come from outside.
 *
 * The model library's rotation is a function that may throw, or may not be a rotation at all.
 * CheckCanRerotate and CheckRerotation test on example keys what eviction needs of it.
 */
class KeyRotator {
 public:
  using Tensor = tvm::runtime::Tensor;

  /*! \param config Must outlive this object. */
  explicit KeyRotator(const PagedKVCacheConfig& config);

  // New tokens.
  /*! \brief [prefill_chunk_size] int32 on the cache's device: the positions of the step's rows. */
  const Tensor& step_positions() const { return step_.positions; }
  /*! \brief Cosines and sines of the step's rows; nullptr unless kvctl rotates. */
  const RopeTable* step_table() const { return step_.table.get(); }
  /*! \brief Fills step_table(), and leaves step_positions() to the backend. */
  void FillStepTable(const StepPlan& plan);
  /*! \brief The same for the positions from which the rows look at renumbered sinks. */
  void FillSinkTable(const std::vector<int32_t>& positions);
  /*! \brief As step_positions() and step_table(), once FillSinkTable was called. */
  const Tensor& sink_positions() const { return sinks_.positions; }
  const RopeTable* sink_table() const { return sinks_.table.get(); }
  /*! \brief Fills step_table() and step_positions(), which is host memory. */
  void SetStep(const StepPlan& plan);
  /*! \brief Sets the positions [rows] from which the step's rows look at renumbered sinks. */
  void SetSinks(const std::vector<int32_t>& positions);
  /*!
   * \brief q, K and V of one tensor.
   * \param qkv (rows, num_qo_heads + 2 * num_kv_heads, head_dim); it may have more rows. The result
   * refers to it.
   */
  GivenRows FusedRows(const Tensor& qkv) const;
  /*! \brief Whether rows may be given that are not fused: not if the model library rotates them. */
  bool TakesRowsApart() const { return !config_.split_rotary.has_value(); }
  /*!
   * \brief Rotates the step's rows.
   * \param at_sinks Whether to rotate q for renumbered sinks as well.
   * \return The given rows, or rows in buffers of this object, which the next call overwrites.
   */
  QKVRows RotateStep(const GivenRows& given, int64_t num_rows, bool at_sinks);
  /*! \brief The same, but leaves kvctl's own rotation to a kernel that reads step_table()
   * and sink_table(). */
  QKVRows RotateStepByLibrary(const GivenRows& given, int64_t num_rows, bool at_sinks);
  /*!
   * \brief Rotates separate q, k and v, (rows, heads, head_dim), if RoPE is inline; in the other
   * modes they come rotated.
   */
  QKVRows RotateParts(const Tensor& q, const tvm::ffi::Optional<Tensor>& k,
                      const tvm::ffi::Optional<Tensor>& v, bool at_sinks);

  // Keys from outside, in host memory.
  /*!
   * \brief Rotates keys of one layer.
   * \param positions [n]
   * \return (1, n, num_kv_heads, head_dim) of the cache's type.
   */
  Tensor RotateKeys(const std::vector<int32_t>& positions, const KVRows& keys);
  /*! \brief (1, count, num_kv_heads, head_dim) of the cache's type. */
  Tensor EmptyKeys(size_t count) const;

  // Keys that change positions.
  /*! \brief Whether cached keys can be rotated where they lie: kvctl's rotation was applied to
   * them, once. */
  bool RerotatesInPlace() const;
  /*! \throws Error kNotImplemented unless keys can be rotated from one position to another. */
  void CheckCanRerotate(const char* operation);
  /*!
   * \brief Checks on example keys that the library's rotations by `from` and then by `by` give its
   * rotation by `to`; [n] each.
   * \throws Error kNotImplemented with the first positions where they do not.
   */
  void CheckRerotation(const std::vector<int32_t>& from, const std::vector<int32_t>& by,
                       const std::vector<int32_t>& to);

 private:
  /*! \brief Positions of some rows, and what rotates them. */
  struct Rotation {
    Tensor positions;                  // [prefill_chunk_size] int32
    std::unique_ptr<RopeTable> table;  // null unless kvctl rotates
    Tensor q, k, v;                    // [prefill_chunk_size, heads, head_dim]: rotated rows
  };

  void Create(Rotation* rotation) const;
  /*! \brief Sets positions in host memory. */
  void Set(const int32_t* positions, int32_t num_rows, Rotation* rotation) const;
  QKVRows Rotate(const GivenRows& given, int64_t num_rows, Rotation* rotation) const;
  void CallLibrary(const GivenRows& given, int64_t num_rows, Rotation* rotation,
                   QKVRows* rows) const;
  /*! \brief A view of a buffer of at most prefill_chunk_size rows, allocated when first used. */
  Tensor Scratch(Tensor* buffer, int64_t num_rows, int64_t num_heads, DLDataType dtype) const;
  /*! \brief A view of rotated rows' buffer; `rows` receives it as a kernel takes it. */
  Tensor TakeRows(Tensor* buffer, int64_t num_rows, int64_t num_heads, DLDataType dtype,
                  KVRows* rows) const;
  /*! \brief Example keys, all alike. */
  Tensor ExampleKeys(size_t count) const;
  /*! \brief Why keys that the library rotated cannot be rotated further, or "". */
  std::string LibraryProblem();

  const PagedKVCacheConfig& config_;
  const DType dtype_;
  Rotation step_;
  Rotation sinks_;                              // of q for renumbered sinks
  Rotation keys_;                               // of keys from outside
  Tensor fused_;                                // [prefill_chunk_size, all heads, head_dim]
  std::optional<std::string> library_problem_;  // nullopt until LibraryProblem was called
};

}  // namespace kvctl

#endif  // KVCTL_RUNTIME_CACHE_STEP_KEY_ROTATOR_H_

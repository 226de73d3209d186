/*!
 * \file core/sampling/draft_row.h
 * \brief One row of draft distributions: dense or sparse, of either precision.
 */
#ifndef KVCTL_CORE_SAMPLING_DRAFT_ROW_H_
#define KVCTL_CORE_SAMPLING_DRAFT_ROW_H_

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "core/sampling/distribution.h"
#include "core/sampling/sampling.h"

namespace kvctl {

/*! \brief The draft distributions of a sequence. */
struct DraftInput {
  const void* probs =
      nullptr;  //!< [rows, width], nullptr where nothing was drawn from a distribution
  DType type = DType::kFloat32;
  int32_t width = 0;  //!< the vocabulary, or the entries of a sparse row
  const int32_t* ids =
      nullptr;  //!< [rows, width] tokens of sparse rows, -1 for none; nullptr: dense
  bool per_node =
      false;  //!< a distribution of its own for each node, and not for its parent's children
};

/*! \brief A draft distribution whose weights are computed for each use. Cheap to copy. */
class DraftRow {
 public:
  DraftRow() = default;
  /*! \brief A row that belongs to the caller. \throws Error kValue if it is no distribution. */
  DraftRow(const VocabContext& vocab, const DraftInput& draft, int64_t row);
  /*! \brief A distribution that a rule computed. */
  explicit DraftRow(Distribution distribution);

  /*! \brief The sum of all grid weights. */
  double total() const { return total_; }
  double weight(int32_t token) const;
  /*! \brief [vocab] the row if it is dense and float32, else nullptr. */
  const float* f32() const { return f32_; }
  /*! \brief Grid weights of tokens [at, at + n). */
  void Weights(const VocabOps& ops, int32_t at, int32_t n, double* out) const;

 private:
  using Entries = std::vector<std::pair<int32_t, double>>;

  template <typename T>
  void LoadEntries(const T* probs, const int32_t* ids, int32_t width, int32_t vocab);

  const float* f32_ = nullptr;
  const double* f64_ = nullptr;
  std::shared_ptr<const Entries> entries_;  // sparse: (token, grid weight) by token
  std::shared_ptr<const Distribution> distribution_;
  double total_ = 0;
};

}  // namespace kvctl

#endif  // KVCTL_CORE_SAMPLING_DRAFT_ROW_H_

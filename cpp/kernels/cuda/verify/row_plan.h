/*!
 * \file kernels/cuda/verify/row_plan.h
 * \brief The rows of a call as CUDA kernels read them: what is done to their logits, and which are
 * summed.
 *
 * Logits that a request leaves as they are (temperature alone) are read in place. Others are
 * written to scratch memory, as float32 after bias, penalties, bitmask and truncation; all later
 * kernels read them there.
 */
#ifndef KVCTL_KERNELS_CUDA_VERIFY_ROW_PLAN_H_
#define KVCTL_KERNELS_CUDA_VERIFY_ROW_PLAN_H_

#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "core/sampling/sampling.h"
#include "kvctl/dtype.h"

namespace kvctl::cuda {

/*! \brief One row to be summed: of logits, or of a draft distribution. */
struct RowJob {
  const void* values;
  int32_t scratch_row;  //!< of scratch memory instead of values, or -1
  float scale;
  DType type;
  int32_t distribution, distribution_f64;
};

/*! \brief The result of one pass over kVocabBlock tokens of a row. */
struct BlockSum {
  float max;      //!< of logits, NaN ignored
  int32_t first;  //!< the first token that has it
  int32_t
      exponent;  //!< SoftmaxRow::exponents; kEmptyBlock, or INT32_MAX for one that is not regular
  int32_t unused;
  uint64_t exp_sum;         //!< SoftmaxRow::block_sums
  double distribution_sum;  //!< of a draft distribution: sum of grid weights, NaN if one is not a
                            //!< probability
};

struct TokenBias {
  int32_t token;
  float bias;
};
struct TokenCount {
  int32_t token, count;
};

/*! \brief A part of the arena: its offset in bytes, and its elements. */
struct PlanList {
  int32_t at, size;
};

/*! \brief What a request does to its logits. */
struct RowProcessing {
  Penalties penalties;
  double top_p, min_p;
  int32_t top_k;
  float scale;      //!< log2(e) / temperature
  PlanList bias;    //!< TokenBias by token; those of one token in the order given
  PlanList counts;  //!< TokenCount by token, over the history
};

/*! \brief A row of logits that is written to scratch memory. */
struct ProcessedRow {
  const void* values;
  DType type;
  int32_t processing;   //!< of RowHeader::processing
  int32_t scratch_row;  //!< where it is written
  int32_t job;          //!< its RowJob
  int32_t bitmask;      //!< [ceil(vocab / 32)] in the arena, or -1
  int32_t cuts;         //!< whether top-k, top-p or min-p remove tokens
  PlanList counts;      //!< TokenCount by token, which replace those over the history
};

/*! \brief Where the arena has these parts. */
struct RowHeader {
  int32_t jobs;        //!< RowJob
  int32_t processing;  //!< RowProcessing
  int32_t processed;   //!< ProcessedRow
};

/*! \brief Appends values to an arena. Returns their offset in bytes, a multiple of 16. */
template <typename T>
int32_t AppendTo(std::vector<uint64_t>* arena, const T* values, size_t count) {
  const size_t at = arena->size(), bytes = count * sizeof(T);
  arena->resize(at + (bytes + 15) / 16 * 2);
  if (bytes > 0) std::memcpy(arena->data() + at, values, bytes);
  return static_cast<int32_t>(at * sizeof(uint64_t));
}

/*! \brief The rows of a call. Lists go into the arena at once, the rest with Finish. */
class RowPlan {
 public:
  /*! \brief (token, times seen). */
  using Counts = std::vector<std::pair<int32_t, int32_t>>;

  /*! \brief \param arena of the call, whose header is there. */
  RowPlan(int32_t vocab_size, std::vector<uint64_t>* arena)
      : vocab_size_(vocab_size), arena_(*arena) {}

  /*! \brief Whether a request's logits must be written to scratch memory. */
  static bool Processes(const Sampling& sampling, const uint32_t* bitmask) {
    return bitmask != nullptr || sampling.penalizes() || !sampling.logit_bias.empty() ||
           Cuts(sampling);
  }
  /*! \brief As core/sampling/sampling.cc scales logits; at temperature 0 those of
   * log-probabilities.
   */
  static float Scale(const Sampling& sampling);

  /*! \brief \param counts over the history. Returns the index for AddProcessed. */
  int32_t AddProcessing(const Sampling& sampling, const Counts& counts);
  /*! \brief A row read in place. Returns its index among the rows that are summed, as below. */
  int32_t AddLogits(const void* values, DType type, float scale);
  /*! \brief \param counts of the tokens that are seen after the history, in total. */
  int32_t AddProcessed(const RowInput& row, const Sampling& sampling, int32_t processing,
                       const Counts& counts);
  int32_t AddDistribution(const void* values, bool f64);

  RowHeader Finish();
  int32_t num_jobs() const { return static_cast<int32_t>(jobs_.size()); }
  int32_t num_processed() const { return static_cast<int32_t>(processed_.size()); }
  bool cuts() const { return cuts_; }

 private:
  static bool Cuts(const Sampling& sampling) {
    return sampling.truncates() && sampling.temperature > 0;
  }
  PlanList AddCounts(Counts counts);

  const int32_t vocab_size_;
  std::vector<uint64_t>& arena_;
  std::vector<RowJob> jobs_;
  std::vector<RowProcessing> processing_;
  std::vector<ProcessedRow> processed_;
  bool cuts_ = false;
};

}  // namespace kvctl::cuda

#endif  // KVCTL_KERNELS_CUDA_VERIFY_ROW_PLAN_H_

/*!
 * \file core/verify/residual.h
 * \brief The residual of a target's distribution after drafted tokens were rejected.
 */
#ifndef KVCTL_CORE_VERIFY_RESIDUAL_H_
#define KVCTL_CORE_VERIFY_RESIDUAL_H_

#include <cstdint>
#include <vector>

#include "core/sampling/draft_row.h"
#include "core/sampling/sampling.h"

namespace kvctl {

/*! \brief The distribution that a child was drawn from, given its earlier siblings. */
struct DraftDistribution {
  bool one_hot;
  int32_t token;                  //!< the child's
  double weight;                  //!< of the child's token
  double total;                   //!< sum over all tokens except the excluded
  std::vector<int32_t> excluded;  //!< tokens zeroed in the row
  DraftRow row;                   //!< unless one_hot

  /*! \brief The probability of the child's token. */
  double prob() const { return weight / total; }
};

/*!
 * \brief The residual r of a target's distribution: r <- relu(a * r - d), normalised, repeatedly.
 *
 * It stores the steps and computes weights when they are needed. Weights are integers, so a token
 * has the same weight each time. Only an unknown mass needs a pass over the vocabulary; drawing a
 * token then needs one block. After many steps the residual is stored as a distribution.
 */
class Residual {
 public:
  explicit Residual(const VocabContext& vocab) : vocab_(vocab) {}

  /*! \brief Sets r to the target's distribution. The target must stay loaded afterwards. */
  void Start(RowSampler* target);
  /*! \brief r <- relu(a * r - d), unless that has no mass. \return the mass. */
  double Subtract(double a, const DraftDistribution& d);

  double prob(int32_t token) const;
  /*! \brief The token that 64 random bits draw. */
  int32_t SampleToken(uint64_t bits);
  void FillDistribution(Distribution* distribution);

 private:
  /*! \brief One subtraction. */
  struct Step {
    DraftDistribution d;
    double a;
    double r_total;  // of r before the step

    // relu(r_factor * r - d_factor * d) on the grid is relu(a * r - d) of the two distributions.
    double r_factor() const;
    double d_factor() const;
  };

  double Weights(int32_t at, int32_t n, double* out) const;
  double Apply(const Step& step, int32_t at, int32_t n, double* r) const;
  double SumWeights(std::vector<double>* block_sums) const;
  void NeedBlockSums();

  const VocabContext& vocab_;
  RowSampler* target_ = nullptr;
  bool written_ = false;
  Distribution distribution_;  // if written_: r before the first of the steps
  std::vector<Step> steps_;
  double total_ = 0;     // sum of all weights, up to rounding unless summed_
  bool summed_ = false;  // whether sum_ and block_sums_ are known
  double sum_ = 0;
  std::vector<double> block_sums_;
};

}  // namespace kvctl

#endif  // KVCTL_CORE_VERIFY_RESIDUAL_H_

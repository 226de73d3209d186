/*!
 * \file core/verify/residual.h
 * \brief What is left of a target's distribution once drafted tokens were rejected.
 */
#ifndef KVCTL_CORE_VERIFY_RESIDUAL_H_
#define KVCTL_CORE_VERIFY_RESIDUAL_H_

#include <cstdint>
#include <vector>

#include "core/sampling/draft_row.h"
#include "core/sampling/sampling.h"

namespace kvctl {

/*! \brief The distribution one child was drawn from, given its earlier siblings. */
struct DraftDistribution {
  bool one_hot;
  int32_t token;                  //!< the child's
  double weight;                  //!< of that token
  double total;                   //!< of all tokens but the excluded
  std::vector<int32_t> excluded;  //!< tokens zeroed in the row
  DraftRow row;                   //!< not where one_hot

  /*! \brief Its probability of the child's token. */
  double prob() const { return weight / total; }
};

/*!
 * \brief r, and what becomes of it by r <- relu(a * r - d), normalised.
 *
 * Kept as the recipe: weights are integers, so a token's is the same whenever it is worked out. The
 * vocabulary is gone through where a mass is asked for that is not known already, and what is drawn
 * then needs a single block. A long recipe is written down as a distribution, once.
 */
class Residual {
 public:
  explicit Residual(const VocabContext& vocab) : vocab_(vocab) {}

  /*! \brief r is the target's distribution. The target must stay loaded while this is used. */
  void Start(RowSampler* target);
  /*! \brief r <- relu(a * r - d), unless that has no mass at all; returns the mass. */
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
    double r_total;  // of what is subtracted from

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
  Distribution distribution_;  // where written_: what the steps start from
  std::vector<Step> steps_;    // the recipe
  double total_ = 0;           // of all weights, but for their rounding until a pass was needed
  bool summed_ = false;        // whether what follows is known
  double sum_ = 0;
  std::vector<double> block_sums_;
};

}  // namespace kvctl

#endif  // KVCTL_CORE_VERIFY_RESIDUAL_H_

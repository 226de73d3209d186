/*!
 * \file runtime/generate/drafting_pays.h
 * \brief Whether drafts are worth their time, by the measured times of rounds.
 */
#ifndef KVCTL_RUNTIME_GENERATE_DRAFTING_PAYS_H_
#define KVCTL_RUNTIME_GENERATE_DRAFTING_PAYS_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <vector>

namespace kvctl {

/*!
 * \brief Compares what a round with drafts emits with what it costs, in plain rounds.
 *
 * A few rounds draft to find out. From then on rounds draft while that pays; where it does not, one
 * tries again now and then, ever more rarely.
 */
class DraftingPays {
 public:
  /*! \brief Whether the next round of so many texts should draft. */
  bool Worthwhile(int64_t texts);
  /*!
   * \brief Learns from a round.
   * \param drafted Whether any text of it verified a draft.
   * \param emitted Tokens of all texts.
   */
  void Observe(int64_t texts, bool drafted, int64_t emitted, double seconds);

 private:
  /*! \brief The last few of many values. */
  class Recent {
   public:
    explicit Recent(size_t most) : most_(most) {}
    void Add(double value);
    double Median() const;
    double Mean() const;
    size_t count() const { return count_; }

   private:
    size_t most_;
    size_t count_ = 0;
    std::vector<double> values_;
  };

  bool Pays() const;

  static constexpr size_t kMedianOf = 5;  // a round that was disturbed says nothing
  static constexpr size_t kMeanOf = 4;
  std::map<int, Recent> plain_;  // seconds, by the binary logarithm of the number of texts
  Recent cost_{kMedianOf};       // of a round with drafts, in plain rounds
  Recent gain_{kMeanOf};         // tokens of a text in a round with drafts
  int64_t wait_ = 0;             // rounds until the next trial
  int64_t next_wait_ = 0;
  bool tries_ = false;  // whether the round at hand is a trial
};

}  // namespace kvctl

#endif  // KVCTL_RUNTIME_GENERATE_DRAFTING_PAYS_H_

#include <algorithm>
#include <cmath>
#include <random>

#include "check.h"
#include "core/tree/best_first.h"

using kvctl::BestFirst;
using kvctl::Marginals;
using kvctl::RatedTree;

namespace {

using Probs = std::vector<double>;

RatedTree Grow(const Probs& probs, int32_t width, int64_t budget, const double* costs = nullptr) {
  const auto depth = static_cast<int32_t>(probs.size()) / width;
  return BestFirst<double>(7, {probs.data(), nullptr, depth, width}, budget, costs);
}

}  // namespace

TEST(BestFirstTakesTheMostProbablePaths) {
  const RatedTree grown = Grow({0.6, 0.4, 0.1, 0.9}, 2, 4);
  EXPECT((grown.tree.tokens() == std::vector<int32_t>{7, 0, 1, 1, 1}));
  EXPECT((grown.tree.parents() == std::vector<int32_t>{-1, 0, 1, 0, 3}));
  EXPECT(std::abs(grown.rates[4] - 0.36) < 1e-12);
}

TEST(BestFirstIsTheSortedLattice) {
  std::mt19937 random(1);
  for (int32_t round = 0; round < 50; ++round) {
    const int32_t width = 3, depth = 3;
    Probs probs;
    for (int32_t i = 0; i < width * depth; ++i) probs.push_back((random() % 100) / 301.0);
    Probs lattice, level{1.0};
    for (int32_t d = 0; d < depth; ++d) {
      Probs next;
      for (double rate : level) {
        for (int32_t j = 0; j < width; ++j) next.push_back(rate * probs[d * width + j]);
      }
      lattice.insert(lattice.end(), next.begin(), next.end());
      level = next;
    }
    std::sort(lattice.rbegin(), lattice.rend());
    const RatedTree grown = Grow(probs, width, 12);
    for (size_t i = 1; i < grown.rates.size(); ++i) {
      EXPECT(std::abs(grown.rates[i] - lattice[i - 1]) < 1e-12);
    }
  }
}

TEST(BestFirstStopsWhereAnotherNodeDoesNotPay) {
  const Probs costs = {1.0, 1.1, 1.2, 2.5, 2.6};
  const RatedTree grown = Grow({0.5, 0.5, 0.5, 0.5}, 2, 4, costs.data());
  EXPECT_EQ(grown.tree.size(), 3);
}

TEST(BestFirstRefusesWhatIsNoDistribution) {
  EXPECT_ERROR(Grow({0.5, NAN}, 2, 3), kValue, "marginals[0, 1] must be a probability");
  EXPECT_ERROR(Grow({-0.5}, 1, 3), kValue, "got -0.5");
  EXPECT_ERROR(Grow({0.9, 0.9}, 2, 3), kValue, "must sum to at most 1, got 1.8");
  EXPECT_ERROR(Grow({0.9}, 1, -1), kValue, "budget must not be negative, got -1");
}

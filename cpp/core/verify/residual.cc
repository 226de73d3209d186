#include "core/verify/residual.h"

#include <algorithm>
#include <utility>

#include "core/support/exact_math.h"

namespace kvctl {
namespace {

// With more dense steps, computing weights again costs more than storing the distribution.
constexpr int kMaxDenseSteps = 4;

}  // namespace

double Residual::Step::r_factor() const { return a * kProbScale / r_total; }
double Residual::Step::d_factor() const { return kProbScale / d.total; }

void Residual::Start(RowSampler* target) {
  target_ = target;
  written_ = summed_ = false;
  steps_.clear();
  target->NeedWeights();
  total_ = target->total();
}

// Applies a step to the weights r[n] of tokens [at, at + n); returns their sum.
double Residual::Apply(const Step& step, int32_t at, int32_t n, double* r) const {
  const DraftDistribution& d = step.d;
  if (d.one_hot) {  // only the drafted token changes: its weight becomes 0
    if (d.token >= at && d.token < at + n) r[d.token - at] = 0;
    double sum = 0;
    for (int32_t i = 0; i < n; ++i) sum += r[i];
    return sum;
  }
  double q[kVocabPiece];
  std::vector<std::pair<int32_t, double>> kept;
  for (int32_t token : d.excluded) {
    if (token >= at && token < at + n) {
      kept.emplace_back(token - at, ToGrid(step.a * (r[token - at] / step.r_total)));
    }
  }
  d.row.Weights(vocab_.ops(), at, n, q);
  double sum = vocab_.ops().subtract(r, q, n, step.r_factor(), step.d_factor(), r);
  for (const auto& [i, w] : kept) {
    sum += w - r[i];
    r[i] = w;
  }
  return sum;
}

// Writes the grid weights of a piece to out, unless it is null; returns their sum.
double Residual::Weights(int32_t at, int32_t n, double* out) const {
  size_t next = 0;
  double sum = 0;
  double piece[kVocabPiece];
  double* r = out == nullptr ? piece : out;
  if (written_) {
    std::copy_n(distribution_.weights.data() + at, n, r);
    for (int32_t i = 0; i < n; ++i) sum += r[i];
  } else if (!steps_.empty() && steps_[0].d.excluded.empty() && steps_[0].d.row.f32() != nullptr) {
    const Step& first = steps_[next++];
    sum = target_->WeightsLess(first.d.row.f32(), first.r_factor(), first.d_factor(), at, n,
                               steps_.size() == next ? out : r);
  } else {
    sum = target_->Weights(at, n, steps_.empty() ? out : r);
  }
  for (; next < steps_.size(); ++next) sum = Apply(steps_[next], at, n, r);
  return sum;
}

double Residual::SumWeights(std::vector<double>* block_sums) const {
  const auto sum = [this](int32_t begin, int32_t size) {
    double total = 0;
    ForPieces(begin, size, [&](int32_t at, int32_t n) { total += Weights(at, n, nullptr); });
    return total;
  };
  return vocab_.SumBlocks(sum, block_sums);
}

void Residual::NeedBlockSums() {
  if (summed_) return;
  sum_ = SumWeights(&block_sums_);
  summed_ = true;
}

double Residual::Subtract(double a, const DraftDistribution& d) {
  const double before = total_;
  double weight = 0;
  if (d.one_hot) Weights(d.token, 1, &weight);
  steps_.push_back({d, a, before});
  if (d.one_hot && before - weight >= kSureMass) {
    total_ = before - weight;
    if (summed_) {
      sum_ -= weight;
      block_sums_[d.token / kVocabBlock] -= weight;
    }
  } else {
    std::vector<double> block_sums;
    const double total = SumWeights(&block_sums);
    if (!(total > 0)) {
      steps_.pop_back();
      return 0;
    }
    block_sums_.swap(block_sums);
    total_ = sum_ = total;
    summed_ = true;
  }
  const double mass = d.one_hot ? a * (total_ / before) : total_ / kProbScale;
  const auto dense = [](const Step& step) { return !step.d.one_hot; };
  if (std::count_if(steps_.begin(), steps_.end(), dense) > kMaxDenseSteps) {
    Distribution distribution;
    FillDistribution(&distribution);
    distribution_ = std::move(distribution);
    written_ = true;
    steps_.clear();
  }
  return mass;
}

double Residual::prob(int32_t token) const {
  double weight;
  Weights(token, 1, &weight);
  return weight / total_;
}

int32_t Residual::SampleToken(uint64_t bits) {
  NeedBlockSums();
  double rest = static_cast<double>(Below(static_cast<uint64_t>(sum_), bits));
  int32_t block = 0;
  for (; rest >= block_sums_[block]; ++block) rest -= block_sums_[block];
  const auto weights = [this](int32_t at, int32_t n, double* out) { return Weights(at, n, out); };
  return PickToken(VocabContext::Begin(block), vocab_.block_size(block), rest, weights);
}

void Residual::FillDistribution(Distribution* distribution) {
  NeedBlockSums();
  distribution->weights.resize(vocab_.size());
  vocab_.ForEachBlock([&](int32_t b) {
    ForPieces(VocabContext::Begin(b), vocab_.block_size(b),
              [&](int32_t at, int32_t n) { Weights(at, n, distribution->weights.data() + at); });
  });
  distribution->block_sums = block_sums_;
  distribution->total = sum_;
}

}  // namespace kvctl

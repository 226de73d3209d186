#include "core/residual.h"

#include <algorithm>
#include <utility>

#include "core/exact_math.h"
#include "kvctl/error.h"

namespace kvctl {
namespace {

// With more dense steps a recipe costs more to follow again than a row costs to write down.
constexpr int kMaxDenseSteps = 4;

}  // namespace

void Residual::Start(RowSampler* target) {
  target_ = target;
  written_ = false;
  steps_.clear();
  target->NeedWeights();
  total_ = SumWeights(&block_sums_);
}

// Turns weights r[n] of tokens [at, at + n) into what the step leaves; returns their sum.
double Residual::Apply(const Step& step, int32_t at, int32_t n, double* r) const {
  const DraftLaw& d = step.d;
  if (d.one_hot) {  // nothing but the drafted token changes, and that one loses everything
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
  double sum =
      vocab_.ops().subtract(r, q, n, step.a * kProbScale / step.r_total, kProbScale / d.total, r);
  for (const auto& [i, w] : kept) {
    sum += w - r[i];
    r[i] = w;
  }
  return sum;
}

// Grid weights of a piece, in out; returns their sum.
double Residual::Weights(int32_t at, int32_t n, double* out) const {
  double sum;
  if (written_) {
    std::copy_n(law_.weights.data() + at, n, out);
    sum = 0;
    for (int32_t i = 0; i < n; ++i) sum += out[i];
  } else {
    sum = target_->Weights(at, n, out);
  }
  for (const Step& step : steps_) sum = Apply(step, at, n, out);
  return sum;
}

double Residual::SumWeights(std::vector<double>* block_sums) const {
  const auto sum = [this](int32_t begin, int32_t size) {
    double total = 0;
    ForPieces(begin, size, [&](int32_t at, int32_t n) {
      double piece[kVocabPiece];
      total +=
          steps_.empty() && !written_ ? target_->Weights(at, n, nullptr) : Weights(at, n, piece);
    });
    return total;
  };
  return vocab_.SumBlocks(sum, block_sums);
}

double Residual::Subtract(double a, const DraftLaw& d) {
  double mass;
  if (d.one_hot) {
    double weight;
    Weights(d.token, 1, &weight);
    const double left = total_ - weight;
    if (!(left > 0)) return 0;
    mass = a * (left / total_);
    block_sums_[d.token / kVocabBlock] -= weight;
    steps_.push_back({d, a, total_});
    total_ = left;
  } else {
    steps_.push_back({d, a, total_});
    std::vector<double> block_sums;
    const double total = SumWeights(&block_sums);
    if (!(total > 0)) {
      steps_.pop_back();
      return 0;
    }
    block_sums_.swap(block_sums);
    total_ = total;
    mass = total / kProbScale;
  }
  const auto dense = [](const Step& step) { return !step.d.one_hot; };
  if (std::count_if(steps_.begin(), steps_.end(), dense) > kMaxDenseSteps) {
    Law law;
    FillLaw(&law);
    law_ = std::move(law);
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

int32_t Residual::Pick(uint64_t bits) const {
  double rest = static_cast<double>(Below(static_cast<uint64_t>(total_), bits));
  int32_t block = 0;
  for (; rest >= block_sums_[block]; ++block) rest -= block_sums_[block];
  const auto weights = [this](int32_t at, int32_t n, double* out) {
    double piece[kVocabPiece];
    return Weights(at, n, out == nullptr ? piece : out);
  };
  return PickToken(Vocab::Begin(block), vocab_.block_size(block), rest, weights);
}

void Residual::FillLaw(Law* law) const {
  law->weights.resize(vocab_.size());
  vocab_.ForEachBlock([&](int32_t b) {
    ForPieces(Vocab::Begin(b), vocab_.block_size(b),
              [&](int32_t at, int32_t n) { Weights(at, n, law->weights.data() + at); });
  });
  law->block_sums = block_sums_;
  law->total = total_;
}

}  // namespace kvctl

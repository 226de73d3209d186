/*!
 * \file benchmarks/cpp/verification.cc
 * \brief What a call of kvctl::Verify costs in a C++ program: rules by batch and vocabulary.
 *
 * Chains of four drafts, drawn from distributions near the target's; best_of_k has two such paths.
 * All subjects of one vocabulary run in turns.
 */
#include <kvctl/verify.h>

#include <cmath>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "report.h"

namespace {

using kvctl::Drawn;
using kvctl::Rule;
using kvctl_bench::Samples;

constexpr int kDrafts = 4;
// Slow rules are measured less often than asked for, but this often at least.
constexpr double kMaxMicroseconds = 2e6;
constexpr int kMinSamples = 5;

/*! \brief A batch with its memory. */
struct Subject {
  kvctl::VerifyBatch batch;
  std::vector<float> logits, probs;
  Samples samples;
  double spent = 0;  // microseconds
};

/*! \brief A row of logits, and the softmax of the row with some noise. */
void AddRow(int32_t vocab, std::mt19937* random, Subject* subject) {
  std::normal_distribution<float> normal(0, 3), noise(0, 0.5f);
  double sum = 0;
  const size_t begin = subject->probs.size();
  for (int32_t x = 0; x < vocab; ++x) {
    subject->logits.push_back(normal(*random));
    subject->probs.push_back(std::exp(subject->logits.back() + noise(*random)));
    sum += subject->probs.back();
  }
  for (int32_t x = 0; x < vocab; ++x) {
    subject->probs[begin + x] = static_cast<float>(subject->probs[begin + x] / sum);
  }
}

int32_t Draw(const float* probs, int32_t vocab, std::mt19937* random) {
  float rest = std::uniform_real_distribution<float>(0, 1)(*random);
  for (int32_t x = 0; x < vocab; ++x) {
    if (rest < probs[x]) return x;
    rest -= probs[x];
  }
  return vocab - 1;
}

std::unique_ptr<Subject> MakeSubject(Rule rule, int batch, int32_t vocab) {
  std::mt19937 random(static_cast<unsigned>(batch + vocab));
  auto subject = std::make_unique<Subject>();
  kvctl::VerifyBatch& call = subject->batch;
  const int paths = rule == Rule::kBestOfK ? 2 : 1;
  for (int b = 0; b < batch; ++b) {
    const size_t begin = subject->probs.size();
    std::vector<int32_t> tokens = {0}, parents = {-1};
    for (int i = 0; i <= paths * kDrafts; ++i) AddRow(vocab, &random, subject.get());
    for (int p = 0; p < paths; ++p) {
      for (int i = 0; i < kDrafts; ++i) {
        parents.push_back(i == 0 ? 0 : static_cast<int32_t>(parents.size()) - 1);
        const float* row =
            subject->probs.data() + begin + static_cast<size_t>(parents.back()) * vocab;
        tokens.push_back(Draw(row, vocab, &random));
      }
    }
    call.trees.emplace_back(tokens, parents);
    call.num_rows += call.trees.back().num_rows();
    call.request_ids.push_back(b);
    call.root_positions.push_back(100);
  }
  call.rule = rule;
  call.drawn = {rule == Rule::kGreedy || rule == Rule::kTargetOnly ? Drawn::kDeterministic
                : rule == Rule::kCoupled                           ? Drawn::kCoupled
                                                                   : Drawn::kIndependent};
  call.logits = subject->logits.data();
  call.vocab_size = vocab;
  call.draft_probs.probs = subject->probs.data();
  return subject;
}

}  // namespace

int main(int argc, char** argv) {
  const char* path = argc > 1 ? argv[1] : "verification.json";
  const int repetitions = argc > 2 ? std::atoi(argv[2]) : 200;
  const std::vector<int32_t> vocabs =
      repetitions < 10 ? std::vector<int32_t>{512} : std::vector<int32_t>{32000, 128256};
  std::printf("A call of kvctl::Verify on chains of %d drafts in microseconds, of %d\n", kDrafts,
              repetitions);
  std::printf("%-12s %7s %6s %10s %10s   10%% - 90%%\n", "rule", "vocab", "batch", "median",
              "least");
  std::string rows;
  for (int32_t vocab : vocabs) {
    std::vector<std::unique_ptr<Subject>> subjects;
    for (int batch : {1, 8}) {
      for (int rule = 0; rule < kvctl::kNumRules; ++rule) {
        subjects.push_back(MakeSubject(static_cast<Rule>(rule), batch, vocab));
      }
    }
    for (int i = -1; i < repetitions; ++i) {
      for (const auto& subject : subjects) {
        if (i >= kMinSamples && subject->spent > kMaxMicroseconds) continue;
        ++subject->batch.root_positions[0];  // other random numbers, as in other rounds
        const double time = kvctl_bench::Microseconds([&] { kvctl::Verify(subject->batch); });
        subject->spent += time;
        if (i >= 0) subject->samples.Add(time);
      }
    }
    for (const auto& subject : subjects) {
      const Samples& samples = subject->samples;
      const char* rule = kvctl::RuleName(subject->batch.rule);
      const int batch = static_cast<int>(subject->batch.trees.size());
      std::printf("%-12s %7d %6d %10.2f %10.2f   %.2f - %.2f\n", rule, vocab, batch,
                  samples.Median(), samples.Least(), samples.Quantile(0.1), samples.Quantile(0.9));
      rows += std::string(rows.empty() ? "" : ",") + "\n    {\"rule\": \"" + rule +
              "\", \"vocab\": " + std::to_string(vocab) + ", \"batch\": " + std::to_string(batch) +
              ", \"time\": " + samples.Json() + "}";
    }
  }
  std::ofstream(path) << "{\n  \"benchmark\": \"verification\",\n  \"machine\": "
                      << kvctl_bench::MachineJson() << ",\n  \"drafts\": " << kDrafts
                      << ",\n  \"calls\": [" << rows << "\n  ]\n}\n";
  std::printf("Wrote %s\n", path);
  return 0;
}

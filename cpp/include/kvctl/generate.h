/*!
 * \file kvctl/generate.h
 * \brief The decoding loop: continues one prompt or many, plainly or with drafts.
 *
 *     kvctl::Init();
 *     kvctl::ModelRunner runner = kvctl::ModelRunner::Load(directory);
 *     kvctl::LookupDrafter drafter;
 *     kvctl::GenerateOptions options;
 *     options.drafter = &drafter;
 *     for (const kvctl::Generation& text : kvctl::Generate(&runner, prompts, options)) ...
 */
#ifndef KVCTL_GENERATE_H_
#define KVCTL_GENERATE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "kvctl/api.h"
#include "kvctl/drafter.h"
#include "kvctl/model_runner.h"
#include "kvctl/sampling.h"
#include "kvctl/verify.h"

namespace kvctl {

/*! \brief How texts are continued. Lists have one entry for all texts or one for each. */
struct GenerateOptions {
  Drafter* drafter = nullptr;  //!< where drafts come from; nullptr decodes plainly
  /*!
   * \brief nullopt: kGreedy at temperature 0, else kTargetOnly; then no draft changes any token.
   * Other rules keep the target's distribution, if they are lossless for what the drafter declares,
   * but give another text than plain sampling.
   */
  std::optional<Rule> rule;
  /*!
   * \brief Draft only while that pays, by the measured times of rounds; false: in every round, and
   * so it is under other rules than kGreedy and kTargetOnly, whose text depends on what is drafted.
   */
  bool adapt = true;
  std::vector<Sampling> sampling;  //!< empty: greedy. Its stop tokens end the text too.
  std::vector<uint64_t> seed = {0};
  /*! \brief One for each text, or that of the first: the i-th has this plus i. */
  std::vector<uint64_t> request_id = {0};
  std::vector<int64_t> max_new_tokens = {256};
  std::vector<int32_t> stop_tokens;  //!< each ends a text, and is the last of its tokens
  /*!
   * \brief Called with each new token of a text, in order, a stop token too; true ends the text
   * with that token. It must not depend on the round that a token came in.
   */
  std::function<bool(int64_t text, int32_t token)> stop_when;
  /*! \brief Called with the new tokens of each round as they come, and the index of the prompt. */
  std::function<void(int64_t text, const std::vector<int32_t>& tokens)> on_tokens;
  bool log_probs = false;    //!< also return the log-probability of each new token
  int64_t first_seq_id = 0;  //!< the i-th text has sequence first_seq_id + i while it runs
  int64_t max_batch = 0;     //!< the most texts that run at once; 0: as many as the cache takes
};

/*! \brief Why a text ended. */
enum class FinishReason : uint8_t {
  kStopToken,
  kStopWhen,  //!< GenerateOptions::stop_when said so
  kLength,    //!< as many tokens as were asked for
  kContext,   //!< the model's context window is full
  kCache,     //!< the cache is full, though it was the text's alone
};
/*! \brief The name of a reason, such as "stop_token". */
KVCTL_API const char* FinishReasonName(FinishReason reason);

/*! \brief Counts and times of one text; a round that several texts share gives each an equal part
 * of its times. */
struct Statistics {
  int64_t rounds = 0;              //!< forwards behind the prefill
  int64_t speculative_rounds = 0;  //!< those that verified a draft
  int64_t drafted = 0;             //!< verified nodes, roots not counted
  int64_t accepted = 0;            //!< those of them that stayed
  int64_t replayed_tokens = 0;     //!< forwarded again because the text had to wait for room
  double prefill_seconds = 0;
  double draft_seconds = 0;    //!< in the drafter, whatever it does
  double forward_seconds = 0;  //!< in the model
  double decode_seconds = 0;   //!< rounds from draft to commit, callbacks not counted

  /*! \brief Adds another text's. */
  KVCTL_API Statistics& operator+=(const Statistics& other);
};

/*! \brief What was generated. */
struct Generation {
  std::vector<int32_t> tokens;  //!< the new ones; one that ended the text is the last of them
  FinishReason finish_reason = FinishReason::kLength;
  /*! \brief [tokens] where asked for, under the processed target distribution; at temperature 0,
   * under that of temperature 1. */
  std::vector<double> log_probs;
  Statistics statistics;
};

/*!
 * \brief Continues prompts, one forward a round for all that run.
 *
 * Texts enter in their order, as the cache has room, and leave when they end. Where pages run out,
 * the text that entered last leaves the cache and waits; its tokens are forwarded again when it
 * comes back. Nothing of a text depends on the texts around it, nor, without a rule by name, on the
 * drafter: this presumes logits of a row that do not depend on how many rows are forwarded with it,
 * which holds on kvctl's own kernels.
 *
 * Whatever is thrown, by the drafter or a callback too: the sequences of this call are removed, and
 * the cache is as it was before.
 *
 * \param runner The model and its cache. Sequences that others have there stay.
 * \param prompts At least one token each; none at all gives no texts.
 * \throws Error kValue for a prompt that is empty, has a token outside the vocabulary or does not
 * fit; for an option that is out of its range or has neither one entry nor one for each prompt; for
 * a sequence that exists; for a draft that breaks the contract of Drafter::Propose; for a rule that
 * would be biased for the drafts (the message names one that is not); for a tree that is no chain,
 * where the model has recurrent layers that give the state after the last token alone.
 */
KVCTL_API std::vector<Generation> Generate(ModelRunner* runner,
                                           const std::vector<std::vector<int32_t>>& prompts,
                                           const GenerateOptions& options = {});

/*!
 * \brief Another model drafts a chain (arXiv 2211.17192, 2302.01318).
 *
 * Its cache stays in step with the texts: after each round it holds what a prefill of the accepted
 * tokens would put there. A text for which that cache has no room is not drafted for.
 */
class KVCTL_API ModelDrafter : public Drafter {
 public:
  struct Options {
    int64_t length = 4;  //!< tokens of a draft, at least 1
    /*!
     * \brief kDeterministic: the most likely token, for greedy and target_only. Others draw from
     * the draft model's distribution, which is then given to Verify, for the rules that need it.
     */
    Drawn how = Drawn::kDeterministic;
    /*! \brief How the draft model's tokens are drawn; nullopt: as the text's. */
    std::optional<Sampling> sampling;
  };

  /*!
   * \param runner The draft model, which must live as long as this; not the target. It takes
   * sequences of its own, beside those that others have in its cache.
   * \throws Error kValue for an option out of its range.
   */
  explicit ModelDrafter(ModelRunner* runner);
  ModelDrafter(ModelRunner* runner, const Options& options);
  ~ModelDrafter() override;  //!< removes the sequences that are left
  std::vector<Draft> Propose(const std::vector<const Request*>& requests) override;
  void Observe(const std::vector<RoundResult>& results) override;
  void Finish(const Request& request) override;

  /*! \brief The sequence of a text in the draft model's cache; nullopt where it has none. */
  std::optional<int64_t> SequenceOf(const Request& request) const;
  /*! \brief How many of the text's first tokens that sequence holds; 0 where it has none. */
  int64_t SequenceLength(const Request& request) const;

 private:
  class Sequences;
  Options options_;
  std::unique_ptr<Sequences> sequences_;
};

}  // namespace kvctl

#endif  // KVCTL_GENERATE_H_

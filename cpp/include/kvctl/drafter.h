/*!
 * \file kvctl/drafter.h
 * \brief What kvctl::Generate asks for drafts: the protocol, and the drafters that need no model.
 */
#ifndef KVCTL_DRAFTER_H_
#define KVCTL_DRAFTER_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kvctl/api.h"
#include "kvctl/sampling.h"
#include "kvctl/token_tree.h"
#include "kvctl/verify.h"

namespace kvctl {

/*!
 * \brief A text that runs, and what may be drafted for it now.
 *
 * The loop changes it from round to round; a drafter only reads it.
 */
struct Request {
  int64_t id = 0;  //!< unique among the texts that run; the index of the prompt
  /*! \brief Prompt and text so far. The last one is the root of the next draft: no forward has seen
   * it. */
  std::vector<int32_t> tokens;
  int64_t prompt_length = 0;  //!< how many of the tokens are the prompt's
  int64_t seq_id = 0;         //!< the sequence in the target's cache: all tokens but the last
  Sampling sampling;          //!< how the target's tokens are drawn; temperature 0 is greedy
  uint64_t seed = 0;
  uint64_t request_id = 0;  //!< names the text's random numbers, with the seed and the position
  int64_t limit = 0;        //!< the most nodes that may be drafted this round; it may be 0

  /*! \brief The last token of the text. */
  int32_t root() const { return tokens.back(); }
  /*! \brief The absolute position of the root, as Verify and SampleDraft take it. */
  int64_t root_position() const { return static_cast<int64_t>(tokens.size()) - 1; }
};

/*! \brief What a drafter proposes for one text. */
struct Draft {
  TokenTree tree;  //!< its root is the last token of the text; alone it asks for a plain step
  /*!
   * \brief [1] how all nodes were drawn, or [tree.size()] how each was; the root's is not read.
   * It must be true: a rule that trusts it is biased otherwise.
   */
  std::vector<Drawn> drawn = {Drawn::kDeterministic};
  /*!
   * \brief [tree.num_rows(), vocabulary] or empty. Row i is the distribution that the children of
   * the node in row i were drawn from. Deterministic and coupled nodes need none.
   */
  std::vector<float> probs = {};

  /*! \brief The root alone, which asks for a plain step. */
  static Draft Nothing(int32_t root) { return {TokenTree::Chain({root})}; }
};

/*! \brief The outcome of one round for one text. */
struct RoundResult {
  const Request* request;         //!< its tokens have the emitted ones already
  const Draft* draft;             //!< what was proposed
  std::vector<int32_t> accepted;  //!< accepted nodes of the draft's tree in path order, no root
  /*! \brief The accepted drafts and the token that follows them, which is missing where the text
   * ended with an accepted draft. */
  std::vector<int32_t> emitted;
  std::vector<int32_t>
      kept;  //!< rows of the tree that stay in the target's cache, the root's first
  /*! \brief Whether there was no room for the draft, so that a plain step was made instead. */
  bool dropped = false;
  bool finished = false;  //!< the text has ended
};

/*!
 * \brief Guesses how texts go on; Generate verifies its guesses.
 *
 * The calls come in this order: Start once for a text, then Propose and Observe in turns for all
 * texts that run, then Finish. A round for which drafting does not pay (GenerateOptions::adapt) is
 * observed without Propose; its drafts are the roots alone. A text that has to wait for room
 * finishes too, perhaps after it was drafted for, and starts anew with the same tokens when it
 * comes back. A drafter keeps what it knows of a text under Request::id, and serves one generation
 * at a time. It may throw from any call: the generation is given up, every text that was started is
 * finished, and the exception reaches the caller.
 */
class KVCTL_API Drafter {
 public:
  virtual ~Drafter();
  /*! \brief Begins a text. */
  virtual void Start(const Request& request);
  /*!
   * \brief Drafts for the next round.
   * \return One draft for each request, in their order. One with another root than the last token
   * of the text, more nodes behind it than Request::limit, or tokens outside the vocabulary is
   * refused, and the generation throws.
   */
  virtual std::vector<Draft> Propose(const std::vector<const Request*>& requests) = 0;
  /*! \brief Learns from the outcome of a round: a result for each text that found room in it. */
  virtual void Observe(const std::vector<RoundResult>& results);
  /*! \brief Forgets a text: it has ended or must wait, or the generation is being given up. */
  virtual void Finish(const Request& request);
};

/*! \brief How far drafts go that are copied from where a text ended like this before. */
struct CopyOptions {
  int64_t length = 8;  //!< the most nodes of a draft, at least 1
  /*! \brief At most so many nodes for each token of the match: a short match is worth little. */
  int64_t nodes_per_match = 2;
};

/*!
 * \brief Prompt lookup (Saxena 2023): what followed the last tokens earlier in the same text, the
 * longest match first.
 */
class KVCTL_API LookupDrafter : public Drafter {
 public:
  /*!
   * \param branches Whether several continuations are merged into a tree, or only the best one is
   * a chain. Rules for chains need the latter.
   * \throws Error kValue for an option out of its range.
   */
  explicit LookupDrafter(const CopyOptions& options = {}, bool branches = false);
  ~LookupDrafter() override;
  void Start(const Request& request) override;
  std::vector<Draft> Propose(const std::vector<const Request*>& requests) override;
  void Observe(const std::vector<RoundResult>& results) override;
  void Finish(const Request& request) override;

 private:
  struct Texts;
  std::unique_ptr<Texts> texts_;
};

/*!
 * \brief What followed the text's longest suffix elsewhere, by frequency (SuffixDecoding, arXiv
 * 2411.04975).
 *
 * Two places are looked up: the text itself, as LookupDrafter does, and a store of other texts,
 * where all requests of all generations with this drafter put their texts when they end. The
 * longer match is taken; between equal ones, that of the text itself.
 */
class KVCTL_API SuffixDrafter : public Drafter {
 public:
  struct Options {
    CopyOptions copy = {32, 2};
    int64_t capacity = 1 << 20;  //!< tokens in the store; the oldest texts make room for new ones
    bool learn = true;           //!< whether texts that end are added, their prompts included
    /*! \brief Whether continuations are merged into a tree, or only the most frequent is a chain.
     */
    bool branches = false;
  };

  SuffixDrafter();
  /*! \throws Error kValue for an option out of its range. */
  explicit SuffixDrafter(const Options& options);
  ~SuffixDrafter() override;
  void Start(const Request& request) override;
  std::vector<Draft> Propose(const std::vector<const Request*>& requests) override;
  void Observe(const std::vector<RoundResult>& results) override;
  void Finish(const Request& request) override;

  /*! \brief Adds texts to the store, from a corpus say. \throws Error kValue for a negative token.
   */
  void Learn(const std::vector<std::vector<int32_t>>& texts);
  int64_t num_tokens() const;  //!< of the store
  int64_t num_texts() const;   //!< of the store
  /*! \brief Writes the store to a file, which Python's SuffixStore.load reads too. */
  void Save(const std::string& path) const;
  /*!
   * \brief Replaces the store by one that was saved; its capacity stays the drafter's.
   * \throws Error kFileNotFound; kValue for a file that is damaged. The store is unchanged then.
   */
  void Load(const std::string& path);

 private:
  struct Texts;
  std::unique_ptr<Texts> texts_;
};

}  // namespace kvctl

#endif  // KVCTL_DRAFTER_H_

/*!
 * \file kvctl/verify.h
 * \brief Verification in C++, without TVM and without Python: which drafted tokens stay, and what
 * comes after them.
 *
 * A decoding loop drafts a tree of tokens for each sequence, forwards the trees through the target
 * model, calls Verify with the logits, and commits the kept rows to its cache. All memory that is
 * given here lies on the host. The results are those of kvctl.verify in Python, bit for bit.
 */
#ifndef KVCTL_VERIFY_H_
#define KVCTL_VERIFY_H_

#include <cstdint>
#include <string>
#include <vector>

#include "kvctl/api.h"
#include "kvctl/dtype.h"
#include "kvctl/sampling.h"
#include "kvctl/token_tree.h"

namespace kvctl {

/*!
 * \brief The acceptance rules. All but kTypical are lossless: the emitted tokens follow the
 * target's distribution. docs/verification.md says for which drafts.
 */
enum class Rule : uint8_t {
  kGreedy,      //!< temperature 0 only: accepts a token if it has the largest logit
  kTargetOnly,  //!< samples from the target and accepts the drafts that agree; lossless for any
                //!< draft
  kTokenWise,   //!< chains: Leviathan et al., "Fast inference from transformers", ICML 2023
  kBlock,       //!< chains: Sun et al., "Block verification", arXiv 2403.10444
  kRecursive,   //!< trees: Miao et al., "SpecInfer", 2024; Chen et al., "Sequoia", 2024
  kTraversal,   //!< trees: Weng et al., "Traversal verification", arXiv 2505.12398
  kBestOfK,     //!< K independent paths of one length: arXiv 2602.16961
  kCoupled,     //!< the Gumbel noise of the draft: Daliri et al., arXiv 2408.07978
  kTypical,     //!< lossy: Cai et al., "Medusa", ICML 2024
};
constexpr int kNumRules = 9;

/*! \brief How a drafted token was drawn. It decides which rules are lossless. */
enum class Drawn : uint8_t {
  kDeterministic,       //!< chosen without the verifier's random numbers; sorted or pruned siblings
  kIndependent,         //!< siblings independent and in draw order, duplicates kept
  kWithoutReplacement,  //!< siblings one after another without replacement, in draw order
  kCoupled,             //!< argmax(log q + G) with the Gumbel noise of the token's position
};
constexpr int kNumDrawn = 4;

/*! \brief The name of a rule in Python, such as "token_wise". */
KVCTL_API const char* RuleName(Rule rule);
/*! \brief The name of a kind of drawing in Python, such as "without_replacement". */
KVCTL_API const char* DrawnName(Drawn drawn);
/*! \brief Whether the tokens that a rule emits follow the target's distribution. */
inline bool IsLossless(Rule rule) { return rule != Rule::kTypical; }

/*!
 * \brief The distributions that drafted tokens were drawn from; verification uses them as they are.
 *
 * Row i is the distribution of the children of the node in row i of the logits; with `per_node`
 * there is a row for each node instead, the distribution of that node itself given its earlier
 * siblings. Rows of leaves (or of roots, with per_node) are not read.
 */
struct DraftProbs {
  const void* probs = nullptr;    //!< [rows, width]; nullptr: no token was drawn from one
  DType dtype = DType::kFloat32;  //!< kFloat32 or kFloat64
  const int32_t* ids = nullptr;   //!< [rows, width] tokens of sparse rows, -1 for none; or nullptr
  int32_t width = 0;              //!< entries of a sparse row; dense rows hold vocab_size
  bool per_node = false;
};

/*!
 * \brief A batch to verify. Pointers and vectors must stay unchanged during the call.
 *
 * B is the number of trees, N the number of their nodes, R the number of their rows, each summed
 * over the batch. Nodes and rows follow each other tree after tree.
 */
struct VerifyBatch {
  Rule rule = Rule::kTargetOnly;
  std::vector<TokenTree> trees;  //!< [B] the drafted trees; a chain is a tree
  /*! \brief [1] how all tokens were drawn, or [N] how each node was; roots are not read. */
  std::vector<Drawn> drawn = {Drawn::kDeterministic};

  const void* logits = nullptr;   //!< [R, vocab_size] row i of a tree says what follows its node i
  DType dtype = DType::kFloat32;  //!< of the logits: kFloat32, kFloat16 or kBFloat16
  int64_t num_rows = 0;           //!< R
  int64_t vocab_size = 0;
  int64_t row_stride = 0;      //!< elements from one row of logits to the next; 0: vocab_size
  bool probabilities = false;  //!< the rows are distributions already (kFloat32 or kFloat64)

  DraftProbs draft_probs;
  /*! \brief [1] for all or [B]; empty: greedy for Rule::kGreedy, else the model's softmax. */
  std::vector<Sampling> sampling;

  // These three name the random numbers: see docs/verification.md.
  uint64_t seed = 0;
  /*! \brief [B] may be empty for one sequence, or at temperature 0. */
  std::vector<uint64_t> request_ids;
  /*! \brief [B] absolute position of each tree's node 0; may be empty at temperature 0. */
  std::vector<int64_t> root_positions;

  /*! \brief [B] tokens before each root, for penalties; or empty. */
  std::vector<std::vector<int32_t>> history;
  /*! \brief [N, bitmask_words] bit i of word j allows token 32 j + i after a node; or nullptr. */
  const uint32_t* bitmask = nullptr;
  /*! \brief 0: ceil(vocab_size / 32). Or the words of the tokenizer's vocabulary: tokens that fewer
   * words do not reach are forbidden, and bits behind vocab_size must not be set. */
  int64_t bitmask_words = 0;
  bool log_probs = false;  //!< also return the log-probability of each emitted token
  /*! \brief A sequence that cannot be decided says why in its outcome; false: Verify throws. */
  bool status = false;
  double epsilon = 0.09;  //!< Rule::kTypical accepts p > min(epsilon, delta * exp(-entropy))
  double delta = 0.3;
};

/*! \brief What Verify decided for one sequence. */
struct VerifiedSequence {
  std::vector<int32_t> kept;            //!< pending rows to commit, the root's first
  std::vector<int32_t> accepted_nodes;  //!< accepted drafted nodes in path order
  std::vector<int32_t> tokens;          //!< emitted tokens: the accepted drafts, then the bonus
  /*! \brief The last emitted token, which is the next root; -1 if the sequence is finished. It
   * exists after every round, not only after full acceptance. */
  int32_t bonus = -1;
  bool finished = false;          //!< a stop token was emitted; the tokens after it were dropped
  std::vector<double> log_probs;  //!< [tokens] where asked for
  /*! \brief With VerifyBatch::status, why the sequence could not be decided: it keeps its root and
   * emits nothing. Else empty. */
  std::string error;
};

/*!
 * \brief Decides which drafted tokens of a batch stay, and what comes after them.
 *
 * The result of a sequence does not depend on its place in the batch, on the other sequences, or
 * on threads.
 *
 * \return one outcome for each tree.
 * \throws Error kValue if the combination of rule and drawn would be biased (the message names a
 * rule that is not), sizes do not fit, random numbers are not named, a token could not have been
 * drawn from its distribution, or a row leaves no token to choose (with VerifyBatch::status, the
 * first and the last two are said in the outcome instead); kType for a dtype that is not allowed;
 * kIndex for a logit_bias outside the vocabulary.
 */
KVCTL_API std::vector<VerifiedSequence> Verify(const VerifyBatch& batch);

/*! \brief Rows of a drafter's logits to draw siblings from. */
struct DraftBatch {
  Drawn how = Drawn::kIndependent;
  int32_t num_tokens = 1;  //!< n, siblings to draw from each row

  const void* logits = nullptr;  //!< [R, vocab_size] the drafter's logits after each node to extend
  DType dtype = DType::kFloat32;  //!< kFloat32, kFloat16 or kBFloat16
  int64_t num_rows = 0;           //!< R
  int64_t vocab_size = 0;
  int64_t row_stride = 0;          //!< elements from one row to the next; 0: vocab_size
  std::vector<Sampling> sampling;  //!< [1] for all or [R]; empty: the drafter's softmax

  uint64_t seed = 0;
  /*! \brief [R] may be empty for one row, or if the drafts are deterministic. */
  std::vector<uint64_t> request_ids;
  /*! \brief [R] position of the root of the drafted tree; may be empty if deterministic. */
  std::vector<int64_t> root_positions;
  std::vector<int64_t> first_nodes;  //!< [R] index in its tree of the first token drawn; empty: 1
  std::vector<int64_t> depths;       //!< [R] depth of the tokens drawn; empty: first_nodes
  /*! \brief [R, bitmask_words] bit i of word j allows token 32 j + i; or nullptr. */
  const uint32_t* bitmask = nullptr;
  int64_t bitmask_words = 0;  //!< as in VerifyBatch
};

/*! \brief Drawn siblings, and the distributions that they were drawn from. */
struct DraftSample {
  /*! \brief [R, n] in draw order; -1 where the support of a row was exhausted. */
  std::vector<int32_t> tokens;
  std::vector<float> probs;  //!< [R, vocab_size]
};

/*!
 * \brief Draws siblings from each row, and returns them with their distributions.
 *
 * The distributions are what makes verification lossless: tokens are drawn from the very numbers
 * that are returned. Give row i to Verify as the draft_probs of the row of the tokens' parent.
 *
 * \throws Error kValue if a row leaves no token, sizes do not fit or random numbers are not named;
 * kType for a dtype that is not allowed; kIndex for a logit_bias outside the vocabulary.
 */
KVCTL_API DraftSample SampleDraft(const DraftBatch& batch);

}  // namespace kvctl

#endif  // KVCTL_VERIFY_H_

/*!
 * \file core/tree/ngram_index.h
 * \brief Prompt lookup: finds what followed earlier occurrences of the text's last tokens.
 */
#ifndef KVCTL_CORE_TREE_NGRAM_INDEX_H_
#define KVCTL_CORE_TREE_NGRAM_INDEX_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <vector>

namespace kvctl {

/*!
 * \brief Drafted tokens as a tree, in the form of kvctl::TokenTree: node 0 is the last token of the
 * text.
 *
 * A parent precedes its children; siblings are in order of preference.
 */
struct NgramDraft {
  std::vector<int32_t> tokens;
  std::vector<int32_t> parents;  //!< -1 for node 0
  /*!
   * \brief How many tokens before a node agree with the occurrence it was copied from, if the nodes
   * above it are right; at most NgramIndex::kMaxMatch. 0 for node 0.
   */
  std::vector<int32_t> match_lengths;
};

/*!
 * \brief An index of all n-grams, n = 1 ... kMaxOrder, of one growing text.
 *
 * Draft tokens are copied from earlier occurrences of the text's last tokens (prompt lookup
 * decoding, Saxena 2023; the same idea as LLMA, arXiv 2304.04487). Every n-gram is a node of a
 * trie, named by its prefix's node and its last token, so equal nodes are equal n-grams: there are
 * no hash collisions to check. Each position remembers, per order, the previous position that ended
 * with the same n-gram. Appending a token takes kMaxOrder hash table operations, a lookup a bounded
 * number of comparisons, however long the text is.
 */
class NgramIndex {
 public:
  static constexpr int32_t kMaxOrder = 4;
  static constexpr int32_t kMaxMatch = 64;  //!< longer matches are reported as this long

  /*! \brief An earlier occurrence of the text's last tokens. */
  struct Match {
    int32_t length = 0;  //!< number of last tokens that match; 0: none
    int32_t end = 0;     //!< position of the token after the earlier occurrence
  };

  NgramIndex();

  int32_t size() const { return static_cast<int32_t>(entries_.size()); }
  int32_t token(int32_t position) const { return entries_[position].token; }

  /*!
   * \brief Adds tokens to the end of the text.
   * \throws std::bad_alloc with the text unchanged.
   */
  void Append(const int32_t* tokens, size_t count);
  /*!
   * \brief Truncates the text to its first `size` tokens.
   * \throws Error kValue unless 0 <= size <= size().
   */
  void Truncate(int64_t size);

  /*!
   * \brief The longest earlier occurrence of the text's last tokens; of equally long ones the
   * latest.
   *
   * Of matches longer than kMaxOrder, only the latest few are compared.
   */
  Match Longest() const;

  /*!
   * \brief A tree that merges the continuations of several occurrences, the longest match first.
   * \param max_nodes At most this many drafted nodes (node 0 not counted).
   * \param max_depth At most this many drafted tokens on a path. A continuation that reaches the
   * end of the text continues with its own tokens, so repeated text repeats.
   * \return Node 0 alone where nothing matches.
   * \throws Error kValue if the text is empty or a limit is negative.
   */
  NgramDraft Tree(int64_t max_nodes, int64_t max_depth) const;
  /*! \brief The continuation of Longest() alone: Tree without branches. Throws as Tree does. */
  NgramDraft Chain(int64_t max_length) const;

 private:
  using PerOrder = std::array<int32_t, kMaxOrder>;  // [n - 1] for the n-gram that ends here

  struct Entry {
    int32_t token;
    PerOrder nodes;     // its trie node, -1 where the text is shorter than n
    PerOrder previous;  // previous position that ends with the same n-gram, or -1
  };

  int32_t Child(int32_t node, int32_t token);
  int32_t MatchLength(int32_t position, int32_t known) const;
  std::vector<Match> Matches(size_t limit) const;
  void Merge(const Match& match, int64_t max_nodes, int64_t max_depth, NgramDraft* draft) const;

  std::vector<Entry> entries_;
  std::unordered_map<uint64_t, int32_t> children_;  // (node, token) -> node
  std::vector<int32_t> latest_;  // per node: last position that ends with it, or -1
};

}  // namespace kvctl

#endif  // KVCTL_CORE_TREE_NGRAM_INDEX_H_

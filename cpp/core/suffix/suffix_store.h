/*!
 * \file core/suffix/suffix_store.h
 * \brief Many texts, to look up how a text that ends like this went on elsewhere.
 */
#ifndef KVCTL_CORE_SUFFIX_SUFFIX_STORE_H_
#define KVCTL_CORE_SUFFIX_SUFFIX_STORE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <shared_mutex>
#include <string>
#include <vector>

#include "core/suffix/context_order.h"
#include "core/suffix/text_ring.h"

namespace kvctl {

/*! \brief Tokens of a caller: `size` of them at `data`. */
struct TokenSpan {
  const int32_t* data;
  size_t size;
};

/*!
 * \brief Drafted tokens as a tree, in the form of kvctl::TokenTree: node 0 is the last token of the
 * context.
 *
 * Nodes come in the order of their shares, so that a parent precedes its children and any prefix is
 * the best tree of its size.
 */
struct SuffixDraft {
  std::vector<int32_t> tokens;
  std::vector<int32_t> parents;  //!< -1 for node 0
  std::vector<double> shares;    //!< how many of the occurrences went this way; 1 for node 0
  int32_t match_length = 0;      //!< how many last tokens of the context the occurrences share
};

/*!
 * \brief Texts of bounded total length, and an index of all their places by what stands before.
 *
 * What followed the longest suffix of a context that occurs anywhere is a draft of what follows the
 * context, each continuation as likely as it was frequent (SuffixDecoding, arXiv 2411.04975). A
 * suffix tree of 10 million tokens is several hundred megabytes; this index is a sorted array in
 * blocks, which is a tenth of that, takes and loses texts one by one, and answers with one binary
 * search.
 *
 * Thread-safe: lookups run side by side, a change waits for them and they wait for it.
 */
class SuffixStore {
 public:
  static constexpr int32_t kMaxMatch = ContextOrder::kMaxContext;  //!< longer matches count as this

  /*!
   * \param capacity Tokens that are kept, each text counted as one more than it has. The oldest
   * texts make room for new ones.
   * \throws Error kValue unless it is in [2, 2^31].
   */
  explicit SuffixStore(int64_t capacity);

  int64_t capacity() const { return texts_.capacity(); }
  int64_t num_tokens() const;
  int64_t num_texts() const;
  /*! \brief Bytes of host memory, allocated but unused ones included. */
  int64_t bytes() const;

  /*!
   * \brief Adds texts, the newest last. An empty one adds nothing; of one that is longer than the
   * capacity its end is kept.
   * \throws Error kValue if a token is negative, with nothing changed. std::bad_alloc: none or the
   * first of the texts were added, and old ones may be gone.
   */
  void Add(const std::vector<TokenSpan>& texts);

  /*! \brief How many last tokens of the context occur somewhere before another token. */
  int32_t Longest(const TokenSpan& context) const;

  /*!
   * \brief The tree of the most frequent continuations of the longest match.
   *
   * Of more occurrences than kOccurrences, that many neighbours in the index are counted.
   * \param max_nodes At most this many drafted nodes (node 0 not counted).
   * \param max_depth At most this many drafted tokens on a path.
   * \return Node 0 alone where nothing matches.
   * \throws Error kValue if the context is empty or a limit is negative.
   */
  SuffixDraft Tree(const TokenSpan& context, int64_t max_nodes, int64_t max_depth) const;
  static constexpr size_t kOccurrences = 24;

  /*!
   * \brief Writes the texts to a file, which others see whole or not at all.
   * \throws Error kRuntime if it cannot be written; a file that was there stays.
   */
  void Save(const std::string& path) const;
  /*!
   * \brief Reads what Save wrote. The file is not trusted: sizes are compared with the file's
   * before memory is allocated, then its checksum.
   * \param capacity Of the store; by default the one that was saved.
   * \throws Error kFileNotFound; kValue if the file is damaged or no such file.
   */
  static std::unique_ptr<SuffixStore> Load(const std::string& path,
                                           std::optional<int64_t> capacity = std::nullopt);

 private:
  class Context;
  struct Found {
    int32_t match_length = 0;
    ContextOrder::Place place{0, 0};
  };

  void AddLocked(const TokenSpan& text);
  void AddManyLocked(const std::vector<TokenSpan>& texts);
  void MakeRoomFor(uint32_t size, size_t unindexed);
  Found Find(const Context& context) const;
  std::vector<uint32_t> Occurrences(const Context& context, const Found& found) const;

  mutable std::shared_mutex mutex_;
  TextRing texts_;
  // Every slot but the last of each text: nothing follows that one.
  ContextOrder order_;
};

}  // namespace kvctl

#endif  // KVCTL_CORE_SUFFIX_SUFFIX_STORE_H_

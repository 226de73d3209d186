/*!
 * \file kvctl/mask.h
 * \brief Attention masks as values: which keys in the cache each new token may see.
 */
#ifndef KVCTL_MASK_H_
#define KVCTL_MASK_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kvctl/api.h"

namespace kvctl {

struct MaskNode;

/*! \brief Keys [begin, end) of a sequence. */
struct KeyRange {
  int32_t begin;
  int32_t end;
};

/*!
 * \brief Which keys of a sequence each of its new tokens (queries) may see.
 *
 * A mask replaces causality; past tokens stay visible unless the mask hides them. Masks are
 * immutable and cheap to copy. They are not bound to a cache and are checked against a sequence
 * when a forward step begins. A *key* is a token in the cache, past or new, counted from 0. A
 * *position* is the logical one: depth in a tree of pending tokens, the original position after
 * eviction.
 */
class KVCTL_API Mask {
 public:
  /*! \brief Every key up to the query itself; in a pending tree: the past, the query's ancestors
   * and itself. */
  static Mask Causal();
  /*!
   * \brief A token tree: query i sees the committed past, its ancestors and itself.
   * \param parents Parent of each new token, or of each pending token, the new ones last: an index
   * into the pending region, smaller than the token's own, or -1 for the committed past. Whether it
   * is smaller is checked when a step begins.
   * \throws kValue for a parent below -1.
   */
  static Mask Tree(std::vector<int32_t> parents);
  /*!
   * \brief Any relation among the new tokens; all keys before them are visible.
   * \param visible [num_new, num_new] row-major, nonzero: the query may see the key.
   */
  static Mask Dense(const uint8_t* visible, int32_t num_new);
  /*!
   * \brief Any relation over past and new.
   * \param visible [num_new, kv_len] row-major; kv_len counts the new tokens as well.
   */
  static Mask Full(const uint8_t* visible, int32_t num_new, int32_t kv_len);
  /*!
   * \brief Causal, but only the last `size` positions (the query's own included) and the first
   * `sinks`.
   * \throws kValue if size < 1 or sinks < 0.
   */
  static Mask Window(int32_t size, int32_t sinks = 0);
  /*! \brief Causal, except that the first `length` positions are visible to every query. */
  static Mask PrefixLM(int32_t length);
  /*!
   * \brief A query sees the keys of its own document, in both directions; `& Causal()` makes the
   * mask causal.
   * \param ids Document of every key of the sequence, new ones included.
   */
  static Mask Documents(const std::vector<int32_t>& ids);
  /*!
   * \brief Exactly the listed keys; past keys must be listed too.
   * \param queries One list of key ranges per new token, in any order, overlaps allowed.
   */
  static Mask Ranges(const std::vector<std::vector<KeyRange>>& queries);

  /*!
   * \brief A mask per layer: layer l uses masks[choice[l]].
   * \throws kValue for a choice outside masks, or trees that differ among the masks.
   */
  static Mask PerLayer(std::vector<Mask> masks, std::vector<int32_t> choice);
  /*! \brief A mask per KV head: head h uses masks[choice[h]]. Allowed within PerLayer, not around
   * it. */
  static Mask PerHead(std::vector<Mask> masks, std::vector<int32_t> choice);

  /*! \brief Set operations. On masks per layer or per head they combine each choice. */
  KVCTL_API friend Mask operator&(const Mask& a, const Mask& b);
  KVCTL_API friend Mask operator|(const Mask& a, const Mask& b);
  /*! \brief The complement over past and new keys. */
  Mask operator~() const;

  /*! \brief Parents of the one Tree inside the expression; nullptr if there is none. */
  const std::vector<int32_t>* tree_parents() const;

  /*! \brief The expression that makes the mask, for display; long lists are abbreviated. */
  std::string ToString() const;

  /*! \brief Encodes the mask as one flat buffer, to cross the FFI. */
  std::vector<int32_t> Encode() const;
  /*! \brief The inverse of Encode. \throws kValue if the buffer does not hold a mask. */
  static Mask Decode(const int32_t* data, size_t size);

  const MaskNode& node() const { return *node_; }

 private:
  explicit Mask(std::shared_ptr<const MaskNode> node) : node_(std::move(node)) {}
  friend struct MaskNode;

  std::shared_ptr<const MaskNode> node_;
};

}  // namespace kvctl

#endif  // KVCTL_MASK_H_

/*!
 * \file core/tree/token_tree_codec.h
 * \brief Token trees as flat int32 buffers: how they cross the FFI.
 *
 * A tree of n nodes is [n, num_rows, tokens (n), parents (n), rows (n)]. The trees of a batch stand
 * one after another in one buffer.
 */
#ifndef KVCTL_CORE_TREE_TOKEN_TREE_CODEC_H_
#define KVCTL_CORE_TREE_TOKEN_TREE_CODEC_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kvctl/token_tree.h"

namespace kvctl {

/*! \brief The arrays of one tree, which belong to the caller. */
struct TreeView {
  int32_t size = 0;
  int32_t num_rows = 0;
  const int32_t* tokens = nullptr;   //!< [size]
  const int32_t* parents = nullptr;  //!< [size]
  const int32_t* rows = nullptr;     //!< [size]
};

TreeView ViewOf(const TokenTree& tree);

/*! \brief The number of int32 that a tree is encoded as. */
size_t EncodedSize(const TokenTree& tree);
/*! \brief Writes a tree to out [EncodedSize(tree)]. \return the end of what was written. */
int32_t* EncodeTree(const TokenTree& tree, int32_t* out);

/*!
 * \brief Views of the encoded trees of a buffer, without a copy.
 *
 * Only the sizes are checked: the arrays may hold anything.
 *
 * \throws Error kValue if the buffer is not made of complete trees.
 */
std::vector<TreeView> SplitTrees(const int32_t* data, size_t size);

/*! \brief The encoded trees of a buffer. \throws Error kValue if it holds something else. */
std::vector<TokenTree> DecodeTrees(const int32_t* data, size_t size);

}  // namespace kvctl

#endif  // KVCTL_CORE_TREE_TOKEN_TREE_CODEC_H_

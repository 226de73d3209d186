/*!
 * \file runtime/draft/text_indices.h
 * \brief An n-gram index for each text that runs, and how far its matches are worth drafting.
 */
#ifndef KVCTL_RUNTIME_DRAFT_TEXT_INDICES_H_
#define KVCTL_RUNTIME_DRAFT_TEXT_INDICES_H_

#include <algorithm>
#include <cstdint>
#include <unordered_map>
#include <utility>
#include <vector>

#include "core/tree/ngram_index.h"
#include "kvctl/drafter.h"
#include "kvctl/error.h"

namespace kvctl {

/*! \brief The indices of the texts that a drafter knows, by Request::id. */
class TextIndices {
 public:
  void Start(const Request& request) {
    NgramIndex index;
    index.Append(request.tokens.data(), request.tokens.size());
    indices_.insert_or_assign(request.id, std::move(index));
  }
  const NgramIndex& Of(const Request& request) const {
    const auto found = indices_.find(request.id);
    if (found == indices_.end()) {
      Throw(ErrorKind::kKey, "the drafter was asked for text ", request.id,
            ", which it has not been told to start");
    }
    return found->second;
  }
  void Observe(const std::vector<RoundResult>& results) {
    for (const RoundResult& result : results) {
      const auto found = indices_.find(result.request->id);
      if (found == indices_.end()) continue;
      found->second.Append(result.emitted.data(), result.emitted.size());
    }
  }
  void Finish(const Request& request) { indices_.erase(request.id); }

 private:
  std::unordered_map<int64_t, NgramIndex> indices_;
};

/*! \throws Error kValue for an option out of its range. */
inline void CheckCopyOptions(const CopyOptions& options) {
  const std::pair<const char*, int64_t> values[] = {{"length", options.length},
                                                    {"nodes_per_match", options.nodes_per_match}};
  for (const auto& [name, value] : values) {
    if (value < 1) Throw(ErrorKind::kValue, name, " must be at least 1, got ", value);
  }
}

/*! \brief How many nodes to draft behind a match. */
inline int64_t NodesBehind(int32_t match_length, int64_t limit, const CopyOptions& options) {
  const int64_t most = std::min(limit, options.length);
  return std::min(most, match_length * std::min(options.nodes_per_match, most));
}

/*! \brief What an index proposes for a text; the root alone where nothing matches. */
inline Draft DraftFrom(const NgramIndex& index, const Request& request, const CopyOptions& options,
                       bool branches) {
  const int64_t nodes = NodesBehind(index.Longest().length, request.limit, options);
  if (nodes == 0) return Draft::Nothing(request.root());
  NgramDraft found = branches ? index.Tree(nodes, nodes) : index.Chain(nodes);
  return {TokenTree(std::move(found.tokens), std::move(found.parents))};
}

}  // namespace kvctl

#endif  // KVCTL_RUNTIME_DRAFT_TEXT_INDICES_H_

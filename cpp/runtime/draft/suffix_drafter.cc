#include <algorithm>
#include <utility>

#include "core/suffix/suffix_store.h"
#include "kvctl/drafter.h"
#include "runtime/draft/text_indices.h"

namespace kvctl {
namespace {

TokenSpan SpanOf(const std::vector<int32_t>& tokens) { return {tokens.data(), tokens.size()}; }

/*! \brief The last tokens of a text, as many as a match may have. */
TokenSpan EndOf(const std::vector<int32_t>& tokens) {
  const auto size = std::min<size_t>(tokens.size(), SuffixStore::kMaxMatch);
  return {tokens.data() + tokens.size() - size, size};
}

/*! \brief The path of first children, which are the most frequent. */
std::vector<int32_t> FirstPath(const SuffixDraft& found) {
  std::vector<int32_t> path = {found.tokens[0]};
  int32_t node = 0;
  for (size_t i = 1; i < found.tokens.size(); ++i) {
    if (found.parents[i] != node) continue;  // a parent precedes its children
    path.push_back(found.tokens[i]);
    node = static_cast<int32_t>(i);
  }
  return path;
}

}  // namespace

struct SuffixDrafter::Texts {
  explicit Texts(const Options& options)
      : options(options), store(std::make_unique<SuffixStore>(options.capacity)) {}

  Draft FromStore(const Request& request, int32_t match_length) const {
    const int64_t nodes = NodesBehind(match_length, request.limit, options.copy);
    if (nodes == 0) return Draft::Nothing(request.root());
    SuffixDraft found = store->Tree(EndOf(request.tokens), nodes, nodes);
    if (!options.branches) return {TokenTree::Chain(FirstPath(found))};
    return {TokenTree(std::move(found.tokens), std::move(found.parents))};
  }

  Options options;
  TextIndices indices;
  std::unique_ptr<SuffixStore> store;
};

SuffixDrafter::SuffixDrafter() : SuffixDrafter(Options()) {}

SuffixDrafter::SuffixDrafter(const Options& options) {
  CheckCopyOptions(options.copy);
  texts_ = std::make_unique<Texts>(options);
}

SuffixDrafter::~SuffixDrafter() = default;

void SuffixDrafter::Start(const Request& request) { texts_->indices.Start(request); }

std::vector<Draft> SuffixDrafter::Propose(const std::vector<const Request*>& requests) {
  std::vector<Draft> drafts;
  const Options& options = texts_->options;
  for (const Request* request : requests) {
    const NgramIndex& own = texts_->indices.Of(*request);
    const int32_t elsewhere = texts_->store->Longest(EndOf(request->tokens));
    drafts.push_back(elsewhere > own.Longest().length
                         ? texts_->FromStore(*request, elsewhere)
                         : DraftFrom(own, *request, options.copy, options.branches));
  }
  return drafts;
}

void SuffixDrafter::Observe(const std::vector<RoundResult>& results) {
  texts_->indices.Observe(results);
  if (!texts_->options.learn) return;
  for (const RoundResult& result : results) {
    if (result.finished) texts_->store->Add({SpanOf(result.request->tokens)});
  }
}

void SuffixDrafter::Finish(const Request& request) { texts_->indices.Finish(request); }

void SuffixDrafter::Learn(const std::vector<std::vector<int32_t>>& texts) {
  std::vector<TokenSpan> spans;
  for (const std::vector<int32_t>& text : texts) spans.push_back(SpanOf(text));
  texts_->store->Add(spans);
}

int64_t SuffixDrafter::num_tokens() const { return texts_->store->num_tokens(); }
int64_t SuffixDrafter::num_texts() const { return texts_->store->num_texts(); }

void SuffixDrafter::Save(const std::string& path) const { texts_->store->Save(path); }

void SuffixDrafter::Load(const std::string& path) {
  texts_->store = SuffixStore::Load(path, texts_->options.capacity);
}

}  // namespace kvctl

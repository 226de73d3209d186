#include "core/suffix/continuation_tree.h"

#include <algorithm>
#include <cstddef>
#include <utility>

namespace kvctl {
namespace {

constexpr int64_t kUsualNodes = 64;  // room that is made before a tree grows

// A node that could be added next: continuations [begin, end) go through it.
struct Offer {
  double share;
  uint64_t age;  // of the newest of them
  int32_t parent;
  int32_t depth;
  size_t begin;
  size_t end;
};

bool Worse(const Offer& a, const Offer& b) {
  if (a.share != b.share) return a.share < b.share;
  if (a.age != b.age) return a.age < b.age;
  return a.depth > b.depth;  // on one path
}

class Growth {
 public:
  Growth(std::vector<Continuation> continuations, int64_t max_depth, SuffixDraft* draft)
      : continuations_(std::move(continuations)), max_depth_(max_depth), draft_(*draft) {}

  void Run(int64_t max_nodes) {
    // The newest first, also where no node has to sort them.
    std::sort(continuations_.begin(), continuations_.end(),
              [](const Continuation& a, const Continuation& b) { return a.age > b.age; });
    const auto nodes = static_cast<size_t>(std::min<int64_t>(max_nodes, kUsualNodes)) + 1;
    draft_.tokens.reserve(nodes);
    draft_.parents.reserve(nodes);
    draft_.shares.reserve(nodes);
    offers_.reserve(continuations_.size() + nodes);
    OfferChildren({1.0, 0, -1, 0, 0, continuations_.size()}, 0);
    while (!offers_.empty() && static_cast<int64_t>(draft_.tokens.size()) <= max_nodes) {
      std::pop_heap(offers_.begin(), offers_.end(), Worse);
      const Offer best = offers_.back();
      offers_.pop_back();
      const auto node = static_cast<int32_t>(draft_.tokens.size());
      draft_.tokens.push_back(continuations_[best.begin].tokens[best.depth - 1]);
      draft_.parents.push_back(best.parent);
      draft_.shares.push_back(best.share);
      OfferChildren(best, node);
    }
  }

 private:
  // Groups a node's continuations by their next token; those that ended say nothing.
  void OfferChildren(const Offer& offer, int32_t node) {
    if (offer.depth >= max_depth_) return;
    const int32_t at = offer.depth;
    const auto first = continuations_.begin() + static_cast<ptrdiff_t>(offer.begin);
    auto last = continuations_.begin() + static_cast<ptrdiff_t>(offer.end);
    const int32_t token = first->tokens[at];
    const auto differs = [&](const Continuation& one) { return one.tokens[at] != token; };
    if (token == TextRing::kEnd || std::any_of(first, last, differs)) {  // seldom, far down
      last = std::remove_if(
          first, last, [&](const Continuation& one) { return one.tokens[at] == TextRing::kEnd; });
      std::sort(first, last, [&](const Continuation& a, const Continuation& b) {
        return a.tokens[at] != b.tokens[at] ? a.tokens[at] < b.tokens[at] : a.age > b.age;
      });
    }
    const auto total = static_cast<double>(last - first);
    for (auto begin = first; begin != last;) {
      const auto end = std::find_if(begin, last, [&](const Continuation& one) {
        return one.tokens[at] != begin->tokens[at];
      });
      const double share = offer.share * static_cast<double>(end - begin) / total;
      offers_.push_back({share, begin->age, node, at + 1,
                         static_cast<size_t>(begin - continuations_.begin()),
                         static_cast<size_t>(end - continuations_.begin())});
      std::push_heap(offers_.begin(), offers_.end(), Worse);
      begin = end;
    }
  }

  std::vector<Continuation> continuations_;
  int64_t max_depth_;
  SuffixDraft& draft_;
  std::vector<Offer> offers_;
};

}  // namespace

void GrowContinuations(std::vector<Continuation> continuations, int64_t max_nodes,
                       int64_t max_depth, SuffixDraft* draft) {
  Growth(std::move(continuations), max_depth, draft).Run(max_nodes);
}

}  // namespace kvctl

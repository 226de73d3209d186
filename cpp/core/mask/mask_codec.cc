// A mask as a flat buffer of int32: each node is its kind, its numbers, and then its children.
#include <cstring>
#include <utility>

#include "core/mask/mask_builder.h"
#include "core/mask/mask_node.h"
#include "kvctl/error.h"

namespace kvctl {
namespace {

constexpr int32_t kMagic = 0x6b766d31;  // "kvm1"

void PutInts(const std::vector<int32_t>& values, std::vector<int32_t>* out) {
  out->push_back(static_cast<int32_t>(values.size()));
  out->insert(out->end(), values.begin(), values.end());
}

void PutWords(const std::vector<uint64_t>& words, std::vector<int32_t>* out) {
  out->push_back(static_cast<int32_t>(words.size()));
  const size_t begin = out->size();
  out->resize(begin + 2 * words.size());
  if (words.empty()) return;  // memcpy takes no null pointer, even for 0 bytes
  std::memcpy(out->data() + begin, words.data(), 8 * words.size());
}

void PutNode(const MaskNode& node, std::vector<int32_t>* out) {
  for (int32_t number : {static_cast<int32_t>(node.kind), node.num_query_tokens, node.kv_len,
                         node.size, node.sinks}) {
    out->push_back(number);
  }
  PutInts(node.ints, out);
  PutWords(node.words, out);
  if (node.kind == MaskKind::kFull) {
    PutInts(node.plan.blocks, out);
    out->push_back(static_cast<int32_t>(node.plan.spans.size()));
    for (const MaskSpan& span : node.plan.spans) {
      out->insert(out->end(), {span.begin, span.end, span.words});
    }
    PutWords(node.plan.words, out);
  }
  out->push_back(static_cast<int32_t>(node.children.size()));
  for (const Mask& child : node.children) PutNode(child.node(), out);
}

/*! \brief Reads what PutNode wrote, and validates everything. */
class Reader {
 public:
  Reader(const int32_t* data, size_t size) : data_(data), end_(data + size) {}

  Mask ReadNode(int32_t depth) {
    Check(depth <= kMaxMaskDepth + 2);  // plus the choices by layer and by head
    MaskNode node;
    const int32_t kind = Next();
    node.kind = static_cast<MaskKind>(kind);
    node.num_query_tokens = Next();
    node.kv_len = Next();
    node.size = Next();
    node.sinks = Next();
    node.ints = Ints();
    node.words = Words();
    if (node.kind == MaskKind::kFull) ReadPlan(&node);
    const int32_t num_children = Next();
    Check(num_children >= 0 && num_children <= end_ - data_);
    std::vector<Mask> children;
    for (int32_t i = 0; i < num_children; ++i) children.push_back(ReadNode(depth + 1));
    return Build(std::move(node), std::move(children));
  }

  void CheckEnd() const { Check(data_ == end_); }

  static void Check(bool condition) {
    if (!condition) Throw(ErrorKind::kValue, "this buffer does not hold an encoded mask");
  }

  int32_t Next() {
    Check(data_ < end_);
    return *data_++;
  }

 private:
  std::vector<int32_t> Ints() {
    const int32_t size = Next();
    Check(size >= 0 && size <= end_ - data_);
    data_ += size;
    return std::vector<int32_t>(data_ - size, data_);
  }

  std::vector<uint64_t> Words() {
    const int32_t size = Next();
    Check(size >= 0 && size <= (end_ - data_) / 2);
    std::vector<uint64_t> words(size);
    if (!words.empty()) std::memcpy(words.data(), data_, 8 * words.size());
    data_ += 2 * words.size();
    return words;
  }

  void ReadPlan(MaskNode* node) {
    MaskPlan& plan = node->plan;
    Check(node->num_query_tokens >= 1 && node->kv_len >= node->num_query_tokens);
    plan.num_query_tokens = node->num_query_tokens;
    plan.kv_len = node->kv_len;
    plan.blocks = Ints();
    Check(plan.num_blocks() == (plan.num_query_tokens + kBlockQueries - 1) / kBlockQueries &&
          plan.blocks[0] == 0);
    const int32_t num_spans = Next();
    Check(num_spans >= 0 && num_spans <= (end_ - data_) / 3);
    for (int32_t i = 0; i < num_spans; ++i) {
      const int32_t begin = Next(), end = Next(), words = Next();
      plan.spans.push_back({begin, end, words, MaskSpan::kByKey});
    }
    plan.words = Words();
    for (int32_t block = 0; block < plan.num_blocks(); ++block) {
      Check(plan.blocks[block] <= plan.blocks[block + 1] && plan.blocks[block + 1] <= num_spans);
      int32_t key = 0;
      for (int32_t i = plan.blocks[block]; i < plan.blocks[block + 1]; ++i) {
        const MaskSpan& span = plan.spans[i];
        Check(span.begin >= key && span.end > span.begin && span.end <= plan.kv_len);
        Check(span.begin % kTileKeys == 0);
        Check(span.end % kTileKeys == 0 || span.end == plan.kv_len);
        Check(span.words == MaskSpan::kAllQueries ||
              (span.words >= 0 && span.words + int64_t(BlockSize(plan.num_query_tokens, block)) <=
                                      static_cast<int64_t>(plan.words.size())));
        key = span.end;
      }
    }
    Check(plan.blocks.back() == num_spans);
  }

  /*! \brief Builds through the public constructors, which validate; only packed bits are taken
   * unchanged. */
  static Mask Build(MaskNode node, std::vector<Mask> children) {
    const size_t operands = node.kind == MaskKind::kNot                                 ? 1
                            : node.kind == MaskKind::kAnd || node.kind == MaskKind::kOr ? 2
                                                                                        : 0;
    const bool choice = node.kind == MaskKind::kPerLayer || node.kind == MaskKind::kPerHead;
    Check(choice || children.size() == operands);
    switch (node.kind) {
      case MaskKind::kCausal:
        return Mask::Causal();
      case MaskKind::kTree:
        return Mask::Tree(std::move(node.ints));
      case MaskKind::kDense:
        Check(node.num_query_tokens >= 1 &&
              static_cast<int64_t>(node.words.size()) ==
                  int64_t(node.num_query_tokens) * NumTiles(node.num_query_tokens));
        return MaskNode::Make(std::move(node));
      case MaskKind::kFull:
        return MaskNode::Make(std::move(node));
      case MaskKind::kWindow:
        return Mask::Window(node.size, node.sinks);
      case MaskKind::kPrefixLM:
        return Mask::PrefixLM(node.size);
      case MaskKind::kDocuments:
        CheckRuns(node.ints, node.kv_len);
        return MaskNode::Make(std::move(node));
      case MaskKind::kRanges:
        return Mask::Ranges(RangeLists(node));
      case MaskKind::kAnd:
        return children[0] & children[1];
      case MaskKind::kOr:
        return children[0] | children[1];
      case MaskKind::kNot:
        return ~children[0];
      case MaskKind::kPerLayer:
        return Mask::PerLayer(std::move(children), std::move(node.ints));
      case MaskKind::kPerHead:
        return Mask::PerHead(std::move(children), std::move(node.ints));
    }
    Check(false);
    return Mask::Causal();
  }

  static void CheckRuns(const std::vector<int32_t>& runs, int32_t kv_len) {
    Check(!runs.empty() && runs.size() % 2 == 0 && runs[0] == 0);
    for (size_t i = 2; i < runs.size(); i += 2) Check(runs[i] > runs[i - 2]);
    Check(runs[runs.size() - 2] < kv_len);
  }

  static std::vector<std::vector<KeyRange>> RangeLists(const MaskNode& node) {
    const std::vector<int32_t>& ints = node.ints;
    const int64_t begin = int64_t(node.num_query_tokens) + 1;
    Check(node.num_query_tokens >= 1 && static_cast<int64_t>(ints.size()) >= begin && ints[0] == 0);
    std::vector<std::vector<KeyRange>> queries(node.num_query_tokens);
    for (int32_t query = 0; query < node.num_query_tokens; ++query) {
      Check(ints[query] <= ints[query + 1] &&
            begin + 2 * int64_t(ints[query + 1]) <= static_cast<int64_t>(ints.size()));
      for (int64_t i = ints[query]; i < ints[query + 1]; ++i) {
        queries[query].push_back({ints[begin + 2 * i], ints[begin + 2 * i + 1]});
      }
    }
    return queries;
  }

  const int32_t* data_;
  const int32_t* end_;
};

}  // namespace

std::vector<int32_t> Mask::Encode() const {
  std::vector<int32_t> out{kMagic};
  PutNode(*node_, &out);
  return out;
}

Mask Mask::Decode(const int32_t* data, size_t size) {
  Reader reader(data, size);
  Reader::Check(size > 0 && reader.Next() == kMagic);
  Mask mask = reader.ReadNode(0);
  reader.CheckEnd();
  return mask;
}

}  // namespace kvctl

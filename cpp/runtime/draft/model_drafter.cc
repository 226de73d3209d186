#include <algorithm>
#include <utility>

#include "kvctl/error.h"
#include "runtime/draft/draft_sequences.h"
#include "runtime/support/host_rows.h"

namespace kvctl {
namespace {

/*! \brief A chain that grows token by token. */
struct Chain {
  const Request* request;
  int64_t most;  // nodes behind the root
  std::vector<int32_t> tokens;
  std::vector<float> probs;  // the distributions that the nodes were drawn from

  int64_t nodes() const { return static_cast<int64_t>(tokens.size()) - 1; }
};

/*! \brief Adds the most likely token; of equals, the lower. */
void AddLikeliest(const float* logits, int64_t vocab_size, Chain* chain) {
  chain->tokens.push_back(
      static_cast<int32_t>(std::max_element(logits, logits + vocab_size) - logits));
}

/*! \brief Adds a token that is drawn from the model's distribution. */
void AddDrawn(const float* logits, int64_t vocab_size, Drawn how,
              const std::optional<Sampling>& sampling, Chain* chain) {
  const Request& request = *chain->request;
  DraftBatch batch;
  batch.how = how;
  batch.logits = logits;
  batch.num_rows = 1;
  batch.vocab_size = vocab_size;
  batch.sampling = {sampling.value_or(request.sampling)};
  batch.seed = request.seed;
  batch.request_ids = {request.request_id};
  batch.root_positions = {request.root_position()};
  batch.first_nodes = {chain->nodes() + 1};
  const DraftSample drawn = SampleDraft(batch);
  chain->tokens.push_back(drawn.tokens[0]);
  if (how == Drawn::kCoupled) return;
  chain->probs.insert(chain->probs.end(), drawn.probs.begin(), drawn.probs.end());
}

Draft DraftOf(Chain chain, Drawn how, int64_t vocab_size) {
  if (chain.nodes() == 0) return Draft::Nothing(chain.tokens[0]);
  // Nothing was drawn behind the last node, but its row has a place.
  if (!chain.probs.empty()) chain.probs.resize(chain.tokens.size() * vocab_size);
  return {TokenTree::Chain(std::move(chain.tokens)), {how}, std::move(chain.probs)};
}

}  // namespace

ModelDrafter::ModelDrafter(ModelRunner* runner) : ModelDrafter(runner, Options()) {}

ModelDrafter::ModelDrafter(ModelRunner* runner, const Options& options) : options_(options) {
  if (runner == nullptr) Throw(ErrorKind::kValue, "the draft model must not be null");
  if (options.length < 1) {
    Throw(ErrorKind::kValue, "length must be at least 1, got ", options.length);
  }
  if (static_cast<int>(options.how) >= kNumDrawn) {
    Throw(ErrorKind::kValue, "how must be one of the ", kNumDrawn, " of kvctl::Drawn, got ",
          static_cast<int>(options.how));
  }
  if (options.sampling) options.sampling->Check(static_cast<int32_t>(runner->vocab_size()));
  sequences_ = std::make_unique<Sequences>(runner);
}

ModelDrafter::~ModelDrafter() = default;

std::vector<Draft> ModelDrafter::Propose(const std::vector<const Request*>& requests) {
  sequences_->DropPending(requests);
  const int64_t vocab_size = sequences_->vocab_size();
  std::vector<const Request*> growing;
  for (const Request* request : requests) {
    if (request->limit > 0) growing.push_back(request);
  }
  std::vector<Chain> chains;
  for (const Request* request : requests) {
    // The last token drafted is not forwarded.
    const int64_t most = std::min({options_.length, request->limit,
                                   std::max<int64_t>(0, sequences_->DepthRoom(*request)) + 1});
    chains.push_back({request, most, {request->root()}, {}});
  }
  tvm::runtime::Tensor logits = sequences_->CatchUp(&growing);
  while (!growing.empty() && logits.defined()) {
    const HostRows rows(logits);
    std::vector<const Request*> next;
    std::vector<int32_t> tokens;
    size_t at = 0;
    for (size_t i = 0; i < growing.size(); ++i) {
      while (chains[at].request != growing[i]) ++at;  // in the order of the requests
      Chain& chain = chains[at];
      const float* row = rows.row(static_cast<int64_t>(i));
      if (options_.how == Drawn::kDeterministic) {
        AddLikeliest(row, vocab_size, &chain);
      } else {
        AddDrawn(row, vocab_size, options_.how, options_.sampling, &chain);
      }
      if (chain.nodes() == chain.most) continue;
      next.push_back(growing[i]);
      tokens.push_back(chain.tokens.back());
    }
    growing = std::move(next);
    if (!growing.empty()) logits = sequences_->Grow(growing, tokens);
  }
  std::vector<Draft> drafts;
  for (Chain& chain : chains) {
    drafts.push_back(DraftOf(std::move(chain), options_.how, vocab_size));
  }
  return drafts;
}

void ModelDrafter::Observe(const std::vector<RoundResult>& results) { sequences_->Keep(results); }

void ModelDrafter::Finish(const Request& request) { sequences_->Finish(request); }

std::optional<int64_t> ModelDrafter::SequenceOf(const Request& request) const {
  return sequences_->IdOf(request);
}

int64_t ModelDrafter::SequenceLength(const Request& request) const {
  return sequences_->LengthOf(request);
}

}  // namespace kvctl

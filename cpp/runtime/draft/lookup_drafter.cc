#include "kvctl/drafter.h"
#include "runtime/draft/text_indices.h"

namespace kvctl {

struct LookupDrafter::Texts {
  CopyOptions options;
  bool branches;
  TextIndices indices;
};

LookupDrafter::LookupDrafter(const CopyOptions& options, bool branches)
    : texts_(new Texts{options, branches, {}}) {
  CheckCopyOptions(options);
}

LookupDrafter::~LookupDrafter() = default;

void LookupDrafter::Start(const Request& request) { texts_->indices.Start(request); }

std::vector<Draft> LookupDrafter::Propose(const std::vector<const Request*>& requests) {
  std::vector<Draft> drafts;
  for (const Request* request : requests) {
    const NgramIndex& index = texts_->indices.Of(*request);
    drafts.push_back(DraftFrom(index, *request, texts_->options, texts_->branches));
  }
  return drafts;
}

void LookupDrafter::Observe(const std::vector<RoundResult>& results) {
  texts_->indices.Observe(results);
}

void LookupDrafter::Finish(const Request& request) { texts_->indices.Finish(request); }

}  // namespace kvctl

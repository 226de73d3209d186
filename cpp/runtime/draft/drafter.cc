#include "kvctl/drafter.h"

namespace kvctl {

Drafter::~Drafter() = default;
void Drafter::Start(const Request&) {}
void Drafter::Observe(const std::vector<RoundResult>&) {}
void Drafter::Finish(const Request&) {}

}  // namespace kvctl

#include "kvctl/checking.h"

#include <atomic>
#include <cstdlib>
#include <cstring>

namespace kvctl {
namespace {

bool IsWanted() {
  const char* wanted = std::getenv("KVCTL_CHECK");
  return wanted != nullptr && *wanted != '\0' && std::strcmp(wanted, "0") != 0;
}

std::atomic<bool>& Mode() {
  static std::atomic<bool> on{IsWanted()};
  return on;
}

}  // namespace

bool Checking() { return Mode().load(std::memory_order_relaxed); }

bool SetChecking(bool on) { return Mode().exchange(on); }

}  // namespace kvctl

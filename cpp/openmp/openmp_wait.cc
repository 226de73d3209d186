// A library of its own, libkvctl_openmp.so. libgomp reads the environment when it is loaded, and
// the loader runs the constructors of what libkvctl.so needs before those of libkvctl.so. This
// library does not need libgomp, and comes behind it in the list of what libkvctl.so needs: the
// loader then runs its constructor first.
#include "openmp/openmp_wait.h"

#include <dlfcn.h>

#include <cstdlib>

namespace kvctl {
namespace {

OpenMPWait setting = OpenMPWait::kUser;

__attribute__((constructor)) void ChooseWait() {
  if (std::getenv("OMP_WAIT_POLICY") != nullptr || std::getenv("GOMP_SPINCOUNT") != nullptr) return;
  // Before libgomp has read its settings it counts one thread. Where it counts one later, there
  // is no thread that could spin.
  auto max_threads = reinterpret_cast<int (*)()>(dlsym(RTLD_DEFAULT, "omp_get_max_threads"));
  const bool too_late = max_threads != nullptr && max_threads() > 1;
  setting = too_late ? OpenMPWait::kTooLate : OpenMPWait::kChosen;
  // Some tens of microseconds: enough to bridge the gap between two layers. libgomp's own choice
  // is milliseconds, which other work on the machine then lacks.
  if (!too_late) setenv("GOMP_SPINCOUNT", "10000", 0);
}

}  // namespace

OpenMPWait OpenMPWaitSetting() { return setting; }

}  // namespace kvctl

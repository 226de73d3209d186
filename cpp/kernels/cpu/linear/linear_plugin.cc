#include <dlfcn.h>

#include <string>

#include "kernels/cpu/linear/linear_onednn.h"

namespace kvctl {
namespace {

const OneDNNPlugin* Open() {
  Dl_info self;
  if (dladdr(reinterpret_cast<const void*>(&Open), &self) == 0) return nullptr;
  std::string path = self.dli_fname;
  path.resize(path.find_last_of('/') + 1);
  path += "libkvctl_onednn.so";
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);  // stays open
  if (library == nullptr) return nullptr;
  using Entry = const OneDNNPlugin* (*)();
  auto entry = reinterpret_cast<Entry>(dlsym(library, kOneDNNPluginSymbol));
  if (entry == nullptr) return nullptr;
  const OneDNNPlugin* plugin = entry();
  return plugin->version == kOneDNNPluginVersion ? plugin : nullptr;
}

}  // namespace

const OneDNNPlugin* OneDNN() {
  static const OneDNNPlugin* const plugin = Open();
  return plugin;
}

}  // namespace kvctl

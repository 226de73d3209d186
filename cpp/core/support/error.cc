#include "kvctl/error.h"

#include <cstring>

namespace kvctl {

std::string SourceLocation::ShortFile() const {
  std::string path = file;
  // Headers are compiled through links in the build folder: rooms/room_core_cache/core/cache/...
  const size_t room = path.rfind("/rooms/room_");
  if (room != std::string::npos)
    return path.substr(path.find('/', room + std::strlen("/rooms/")) + 1);
  const size_t root = path.rfind("/cpp/");
  if (root != std::string::npos) return path.substr(root + std::strlen("/cpp/"));
  return path.substr(path.rfind('/') + 1);
}

}  // namespace kvctl

#include "core/support/elf_file.h"

#include <elf.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <vector>

#include "kvctl/error.h"

namespace kvctl {

void CheckElfFile(const std::string& path) {
  const uint64_t size = std::filesystem::file_size(path);
  std::ifstream file(path, std::ios::binary);
  Elf64_Ehdr header;
  if (!file.read(reinterpret_cast<char*>(&header), sizeof(header)) ||
      std::memcmp(header.e_ident, ELFMAG, SELFMAG) != 0 || header.e_ident[EI_CLASS] != ELFCLASS64 ||
      header.e_phentsize != sizeof(Elf64_Phdr)) {
    Throw(ErrorKind::kValue, path, " (", size, " bytes) is not a shared library");
  }
  uint64_t needed = header.e_phoff + uint64_t{header.e_phnum} * header.e_phentsize;
  std::vector<Elf64_Phdr> segments(header.e_phnum);
  file.seekg(static_cast<std::streamoff>(header.e_phoff));
  if (file.read(reinterpret_cast<char*>(segments.data()),
                static_cast<std::streamsize>(segments.size() * sizeof(Elf64_Phdr)))) {
    for (const Elf64_Phdr& segment : segments) {
      needed = std::max<uint64_t>(needed, segment.p_offset + segment.p_filesz);
    }
    needed =
        std::max<uint64_t>(needed, header.e_shoff + uint64_t{header.e_shnum} * header.e_shentsize);
  }
  if (needed > size) {
    Throw(ErrorKind::kValue, path, " is truncated: it has ", size, " bytes, its headers need ",
          needed);
  }
}

}  // namespace kvctl

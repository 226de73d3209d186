#include "runtime/model/files/model_files.h"

#include <algorithm>
#include <array>
#include <filesystem>
#include <fstream>
#include <limits>
#include <unordered_set>

#include "kvctl/error.h"

namespace kvctl {
namespace {

namespace ffi = tvm::ffi;
namespace fs = std::filesystem;

/*! \brief Whether every byte above ASCII is part of a UTF-8 sequence of the right length. */
bool IsUtf8(const std::string& text) {
  size_t follow = 0;
  for (unsigned char byte : text) {
    const bool continuation = (byte & 0xC0) == 0x80;
    if (continuation != (follow > 0)) return false;
    if (continuation) {
      --follow;
    } else if (byte >= 0xF5 || byte == 0xC0 || byte == 0xC1) {
      return false;
    } else if (byte >= 0xC0) {
      follow = byte >= 0xF0 ? 3 : byte >= 0xE0 ? 2 : 1;
    }
  }
  return follow == 0;
}

/*! \brief Configurations and indices are far smaller. */
constexpr int64_t kMaxTextBytes = int64_t{64} << 20;

/*! \brief Refuses what git-lfs leaves in place of a file that was not fetched. */
void RefusePointer(const fs::path& path) {
  constexpr int64_t kMaxPointerBytes = 1024;
  constexpr char kStart[] = "version https://git-lfs.github.com/spec/";
  std::array<char, sizeof(kStart) - 1> start{};
  if (static_cast<int64_t>(fs::file_size(path)) >= kMaxPointerBytes) return;
  std::ifstream file(path, std::ios::binary);
  if (file.read(start.data(), start.size()) && std::equal(start.begin(), start.end(), kStart)) {
    Throw(ErrorKind::kValue, path.string(),
          " is a git-lfs pointer, not the file that it stands for: run 'git lfs pull' in ",
          path.parent_path().string());
  }
}

/*! \brief A text file; one that is not UTF-8 could not be quoted in a message. */
std::string ReadText(const fs::path& path) {
  const auto size = static_cast<int64_t>(fs::file_size(path));
  if (size > kMaxTextBytes) {
    Throw(ErrorKind::kValue, path.string(), " has ", size, " bytes, more than the ", kMaxTextBytes,
          " that are read");
  }
  std::ifstream file(path, std::ios::binary);
  std::string text(static_cast<size_t>(size), '\0');
  if (!file.read(text.data(), size)) Throw(ErrorKind::kValue, "cannot read ", path.string());
  if (!IsUtf8(text)) Throw(ErrorKind::kValue, path.string(), " is damaged: it is not UTF-8 text");
  return text;
}

fs::path RequireFile(const fs::path& path, const char* what) {
  std::error_code unreadable;  // as for a name that is too long
  if (!fs::is_regular_file(path, unreadable)) {
    Throw(ErrorKind::kFileNotFound, "the model directory ", path.parent_path().string(), " has no ",
          path.filename().string(), " (", what, ")");
  }
  RefusePointer(path);
  return path;
}

std::string FindLibrary(const fs::path& directory) {
  if (fs::is_regular_file(directory / "lib.so")) return (directory / "lib.so").string();
  std::vector<std::string> found;
  for (const fs::directory_entry& entry : fs::directory_iterator(directory)) {
    if (entry.path().extension() == ".so") found.push_back(entry.path().string());
  }
  if (found.empty()) {
    Throw(ErrorKind::kFileNotFound, "the model directory ", directory.string(),
          " has no model library (a file *.so)");
  }
  if (found.size() > 1) {
    Throw(ErrorKind::kValue, "the model directory ", directory.string(), " has ", found.size(),
          " libraries and none is called lib.so: ", found[0], ", ", found[1]);
  }
  return found[0];
}

DLDataType ParseDType(const std::string& text, const std::string& where) {
  try {
    const DLDataType dtype = ffi::StringToDLDataType(text);
    if (dtype.bits > 0 && dtype.lanes == 1) return dtype;
  } catch (const ffi::Error&) {
  }
  Throw(ErrorKind::kValue, where, ": '", text, "' is not a dtype");
}

ParamRecord ReadRecord(const JsonObject& json, const std::string& index, int64_t shard_bytes) {
  ParamRecord record;
  record.name = GetMember<ffi::String>(json, "name", index);
  const std::string where = index + ", parameter " + record.name;
  for (const ffi::Any& extent : GetMember<ffi::json::Array>(json, "shape", where)) {
    auto value = extent.try_cast<int64_t>();
    if (!value) Throw(ErrorKind::kValue, where, ": its shape must be integers");
    record.shape.push_back(*value);
  }
  record.dtype = ParseDType(GetMember<ffi::String>(json, "dtype", where), where);
  record.nbytes = GetMember<int64_t>(json, "nbytes", where);
  record.offset = GetMember<int64_t>(json, "byteOffset", where);
  const std::string format = GetMember<ffi::String>(json, "format", where);
  const bool is_float32 = record.dtype.code == kDLFloat && record.dtype.bits == 32;
  record.widened = format == "f32-to-bf16" && is_float32;
  if (format != "f32-to-bf16" && format != "raw") {
    Throw(ErrorKind::kValue, where, ": unknown format '", format, "'; known: raw, f32-to-bf16");
  }
  const int64_t expected =
      TensorBytes(record.dtype, record.shape, where) / (record.widened ? 2 : 1);
  if (record.nbytes != expected) {
    Throw(ErrorKind::kValue, where, ": ", DescribeTensor(record.dtype, record.shape), " in format ",
          format, " takes ", expected, " bytes, the index says ", record.nbytes);
  }
  if (record.offset < 0 || record.offset > shard_bytes - record.nbytes) {
    Throw(ErrorKind::kValue, where, ": bytes ", record.offset, " to ",
          record.offset + record.nbytes, " are not within its shard of ", shard_bytes, " bytes");
  }
  return record;
}

ParamShard ReadShard(const JsonObject& json, const fs::path& directory, const std::string& index) {
  const std::string name = GetMember<ffi::String>(json, "dataPath", index);
  if (name.empty() || fs::path(name).filename() != name) {
    Throw(ErrorKind::kValue, index, ": dataPath '", name, "' is not the name of a file beside it");
  }
  ParamShard shard;
  shard.path = RequireFile(directory / name, "parameters that its index names").string();
  const int64_t nbytes = GetMember<int64_t>(json, "nbytes", index + ", " + name);
  shard.nbytes = nbytes;
  const auto found = static_cast<int64_t>(fs::file_size(shard.path));
  if (found != nbytes) {
    Throw(ErrorKind::kValue, shard.path, found < nbytes ? " is truncated" : " is too long",
          ": it has ", found, " bytes, ", fs::path(index).filename().string(), " says ", nbytes,
          ". Download or compile the model again.");
  }
  if (json.count(ffi::String("md5sum")) > 0) {
    shard.md5 = GetMember<ffi::String>(json, "md5sum", index + ", " + name);
    const bool digits = shard.md5.find_first_not_of("0123456789abcdef") == std::string::npos;
    if (shard.md5.size() != 32 || !digits) {
      Throw(ErrorKind::kValue, index, ", ", name, ": md5sum must be 32 hexadecimal digits");
    }
  }
  for (const ffi::Any& record : GetMember<ffi::json::Array>(json, "records", index + ", " + name)) {
    auto object = record.try_cast<JsonObject>();
    if (!object) Throw(ErrorKind::kValue, index, ", ", name, ": a record is not an object");
    shard.records.push_back(ReadRecord(*object, index, nbytes));
  }
  return shard;
}

}  // namespace

int64_t TensorBytes(DLDataType dtype, const std::vector<int64_t>& shape, const std::string& what) {
  const int64_t element_bits = int64_t{dtype.bits} * dtype.lanes;
  int64_t count = 1;
  for (int64_t extent : shape) {
    if (extent < 0 ||
        (extent > 0 && count > std::numeric_limits<int64_t>::max() / element_bits / extent)) {
      Throw(ErrorKind::kValue, what, ": no tensor has the shape of ", DescribeTensor(dtype, shape));
    }
    count *= extent;
  }
  return (count * element_bits + 7) / 8;
}

std::string DescribeTensor(DLDataType dtype, const std::vector<int64_t>& shape) {
  std::string text = std::string(ffi::DLDataTypeToString(dtype)) + " (";
  for (size_t i = 0; i < shape.size(); ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  }
  return text + ")";
}

ModelFiles OpenModelFiles(const std::string& directory) {
  if (!fs::is_directory(directory)) {
    Throw(ErrorKind::kFileNotFound, "there is no model directory ", directory);
  }
  const fs::path root(directory);
  ModelFiles files;
  files.directory = directory;
  files.library = FindLibrary(root);
  RefusePointer(files.library);
  const fs::path config = RequireFile(root / "mlc-chat-config.json", "the model's configuration");
  files.config = ParseJsonObject(ReadText(config), config.string());

  const auto ours = FindMember<JsonObject>(files.config, "kvctl");
  if (ours) files.library_md5 = FindMember<ffi::String>(*ours, "library_md5").value_or("");

  const fs::path old_index = root / "ndarray-cache.json";
  const fs::path index = fs::is_regular_file(old_index)
                             ? old_index
                             : RequireFile(root / "tensor-cache.json", "the parameters' index");
  files.index = index.string();
  const JsonObject json = ParseJsonObject(ReadText(index), files.index);
  std::unordered_set<std::string> names;
  for (const ffi::Any& shard : GetMember<ffi::json::Array>(json, "records", files.index)) {
    auto object = shard.try_cast<JsonObject>();
    if (!object) Throw(ErrorKind::kValue, files.index, ": a shard is not an object");
    files.shards.push_back(ReadShard(*object, root, files.index));
    for (const ParamRecord& record : files.shards.back().records) {
      if (!names.insert(record.name).second) {
        Throw(ErrorKind::kValue, files.index, ": parameter ", record.name, " appears twice");
      }
    }
  }
  return files;
}

}  // namespace kvctl

// Safetensors: which headers are accepted, held against a parsed tree; tensors lie within the file and can be read; an
// index reaches the files that it names.
#include "tensor/safetensors.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "fuzz.h"
#include "memory_file.h"
#include "tensors.h"

using namespace sluice;
using Json = nlohmann::json;
namespace fs = std::filesystem;

namespace {

// A folder with an index and one shard, both in memory.
struct Checkpoint {
  Checkpoint() {
    std::string name = (fs::temp_directory_path() / "sluice_fuzz_XXXXXX").string();
    FUZZ_CHECK(::mkdtemp(name.data()) != nullptr, "a folder can be made");
    folder = name;
    fs::create_symlink(index.path(), folder / "model.safetensors.index.json");
    fs::create_symlink(shard.path(), folder / "a.safetensors");
  }
  ~Checkpoint() { fs::remove_all(folder); }

  fuzz::MemoryFile index, shard;
  fs::path folder;
};

Checkpoint& checkpoint() {
  static Checkpoint instance;
  return instance;
}

constexpr std::pair<std::string_view, uint64_t> kTypes[] = {
    {"F32", 4}, {"F16", 2}, {"BF16", 2}, {"I32", 4}, {"F8_E4M3", 1}};

// Of a type that is not supported: only who wants the tensor is told.
bool is_unknown(const Json& entry) {
  return entry["dtype"].is_string() &&
         std::ranges::none_of(kTypes, [&](const auto& type) { return entry["dtype"] == type.first; });
}

// The bytes of such a tensor, unless it is none that is read.
std::optional<uint64_t> bytes_of(const Json& entry) {
  for (const auto& [name, bytes] : kTypes) {
    if (entry["dtype"] != name) continue;
    // A shape has no negative extents, and the bytes that a file of 4 KB has: no product of them overflows in a double.
    double product = static_cast<double>(bytes);
    for (const Json& extent : entry["shape"]) {
      if (!extent.is_number_unsigned()) return std::nullopt;
      product *= extent.get<double>();
    }
    if (product > 1e6) return std::nullopt;
    return static_cast<uint64_t>(product);
  }
  return std::nullopt;
}

bool is_good(const Json& entry, uint64_t data_bytes) {
  if (!entry.is_object() || !entry.contains("dtype") || !entry.contains("shape") || !entry["shape"].is_array()) {
    return false;
  }
  const Json offsets = entry.value("data_offsets", Json());
  if (!offsets.is_array() || offsets.size() != 2) return false;
  if (!offsets[0].is_number_unsigned() || !offsets[1].is_number_unsigned()) return false;
  if (is_unknown(entry)) return true;
  const auto begin = offsets[0].get<uint64_t>(), end = offsets[1].get<uint64_t>();
  return begin <= end && end <= data_bytes && bytes_of(entry) == end - begin;
}

void check_file(const std::string& path, std::string_view header, uint64_t data_bytes) {
  const auto source = tensor::open_safetensors_file(path);
  const Json tree = Json::parse(header, nullptr, /*allow_exceptions=*/false);
  bool good = tree.is_object();
  bool has_huge = false;  // extents beyond any file, which a zero among them does not excuse
  const Json entries = good ? tree : Json::object();
  for (const auto& [name, entry] : entries.items()) {
    if (name == "__metadata__") continue;
    good = good && is_good(entry, data_bytes);
    if (!entry.is_object()) continue;
    const Json shape = entry.value("shape", Json::array());
    for (const Json& extent : shape) has_huge = has_huge || (extent.is_number() && extent.get<double>() > 4096);
  }
  if (!source.ok()) {
    FUZZ_CHECK(source.error().message.starts_with(path), "an error names the file");
    FUZZ_CHECK(!good || has_huge, source.error().message.c_str());
    return;
  }
  FUZZ_CHECK(good, "a header that is accepted is right");
  for (const auto& [name, entry] : tree.items()) {
    if (name == "__metadata__") continue;
    const auto found = (*source)->find(name);
    if (is_unknown(entry)) {
      FUZZ_CHECK(!found.ok() && found.error().code == ErrorCode::kUnimplemented, "its type is the error");
      continue;
    }
    FUZZ_CHECK(found.ok() && found->name == name, "every tensor is found");
    FUZZ_CHECK(Json(found->shape) == entry["shape"], "the shape is the header's");
    fuzz::check_tensor(*found);
  }
}

void check_index(std::string_view index) {
  const auto source = tensor::open_safetensors(checkpoint().folder);
  if (!source.ok()) {
    FUZZ_CHECK(source.error().message.starts_with(checkpoint().folder.string()), "an error names the file");
    return;
  }
  const Json tree = Json::parse(index, nullptr, /*allow_exceptions=*/false);
  FUZZ_CHECK(tree.is_object() && tree["weight_map"].is_object(), "an index maps names to files");
  for (const auto& [name, shard] : tree["weight_map"].items()) {
    FUZZ_CHECK(shard.is_string() && (*source)->has(name), "the file that is there has what the index says");
  }
}

}  // namespace

// How much longer the header claims to be than it is, then the header, its data and an index, a line each.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Input input(data, size);
  const uint8_t more = input.byte();
  std::string_view rest = input.rest();
  const auto line = [&] {
    const auto text = rest.substr(0, rest.find('\n'));
    rest.remove_prefix(std::min(rest.size(), text.size() + 1));
    return text;
  };
  const std::string_view header = line(), values = line();
  const uint64_t lie = more % 4 != 0 ? 0 : more == 0xFC ? ~uint64_t{0} : more / 4;
  const uint64_t claimed = header.size() + lie;
  std::string file(8, '\0');
  std::memcpy(file.data(), &claimed, 8);
  file.append(header).append(values);
  checkpoint().shard.fill(file);
  const std::string_view after = std::string_view(file).substr(8);
  if (claimed <= after.size()) {
    check_file(checkpoint().shard.path(), after.substr(0, claimed), after.size() - claimed);
  } else {
    FUZZ_CHECK(!tensor::open_safetensors_file(checkpoint().shard.path()).ok(), "a header is not longer than its file");
  }
  checkpoint().index.fill(rest);
  check_index(rest);
  return 0;
}

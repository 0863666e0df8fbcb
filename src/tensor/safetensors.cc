#include "tensor/safetensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "tensor/mapped_file.h"

namespace sluice::tensor {
namespace {

using Json = nlohmann::json;
namespace fs = std::filesystem;

constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the bound of the reference implementation

class SafetensorsSource final : public TensorSource {
 public:
  explicit SafetensorsSource(std::string where) : where_(std::move(where)) {}

  Result<void> add_file(const std::string& path, const std::set<std::string>* wanted);

  Result<StoredTensor> find(std::string_view name) const override {
    const auto at = look_up(name);
    if (at == tensors_.end()) return Error{ErrorCode::kNotFound, fmt::format("{}: no tensor {}", where_, name)};
    return at->second;
  }
  bool has(std::string_view name) const override { return look_up(name) != tensors_.end(); }

 private:
  // One of a type that is not supported is an error only when somebody wants it.
  using Tensors = std::map<std::string, Result<StoredTensor>, std::less<>>;

  // A decoder that is published by itself, to embed texts, has its tensors without "model.".
  Tensors::const_iterator look_up(std::string_view name) const {
    constexpr std::string_view kModel = "model.";
    const auto at = tensors_.find(name);
    if (at != tensors_.end() || !name.starts_with(kModel)) return at;
    const bool bare = tensors_.contains("embed_tokens.weight") && !tensors_.contains("model.embed_tokens.weight");
    return bare ? tensors_.find(name.substr(kModel.size())) : at;
  }

  std::string where_;
  std::vector<std::shared_ptr<const MappedFile>> files_;
  Tensors tensors_;
};

bool dtype_from_name(std::string_view name, DType& dtype) {
  for (const DType known : {DType::kF32, DType::kF16, DType::kBf16, DType::kI32, DType::kF8E4M3}) {
    if (to_string(known) == name) {
      dtype = known;
      return true;
    }
  }
  return false;
}

Result<StoredTensor> read_entry(const std::string& path, const std::string& name, const Json& entry,
                                std::span<const std::byte> data) {
  const auto bad = [&](std::string reason) {
    return Error{ErrorCode::kProtocol, fmt::format("{}: tensor {}: {}", path, name, reason)};
  };
  if (!entry.is_object() || !entry.contains("dtype") || !entry.contains("shape") || !entry.contains("data_offsets")) {
    return bad("its entry lacks dtype, shape or data_offsets");
  }
  const Json& dtype = entry["dtype"];
  const Json& shape = entry["shape"];
  const Json& offsets = entry["data_offsets"];
  if (!dtype.is_string() || !shape.is_array() || !offsets.is_array() || offsets.size() != 2 ||
      !offsets[0].is_number_unsigned() || !offsets[1].is_number_unsigned()) {
    return bad("dtype, shape or data_offsets has the wrong type");
  }
  StoredTensor tensor;
  tensor.name = name;
  if (!dtype_from_name(dtype.get_ref<const std::string&>(), tensor.dtype)) {
    Error unknown = bad(fmt::format("the element type {} is not supported", dtype.get<std::string>()));
    unknown.code = ErrorCode::kUnimplemented;
    return unknown;
  }
  uint64_t bytes = block_bytes(tensor.dtype);
  uint64_t bound = bytes;  // counts an extent of 0 as 1: it does not excuse what the others make
  for (const Json& extent : shape) {
    if (!extent.is_number_unsigned()) return bad("an extent of its shape is not a whole number");
    const auto value = extent.get<uint64_t>();
    if (value > uint64_t{1} << 40 || (value != 0 && bound > (uint64_t{1} << 50) / value)) {
      return bad("its shape is larger than any file");
    }
    tensor.shape.push_back(static_cast<int64_t>(value));
    bytes *= value;
    bound *= std::max<uint64_t>(value, 1);
  }
  const auto begin = offsets[0].get<uint64_t>();
  const auto end = offsets[1].get<uint64_t>();
  if (begin > end || end > data.size()) {
    return bad(fmt::format("its data {}..{} lies outside the {} bytes of the file's data", begin, end, data.size()));
  }
  if (end - begin != bytes) return bad(fmt::format("its shape needs {} bytes and it has {}", bytes, end - begin));
  tensor.data = data.subspan(begin, end - begin);
  return tensor;
}

Result<void> SafetensorsSource::add_file(const std::string& path, const std::set<std::string>* wanted) {
  SLUICE_TRY(auto file, MappedFile::open(path));
  const auto bytes = file->bytes();
  const auto bad = [&](std::string reason) { return Error{ErrorCode::kProtocol, fmt::format("{}: {}", path, reason)}; };
  if (bytes.size() < 8) return bad("too short for a safetensors header");
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, bytes.data(), 8);
  if (header_bytes > kMaxHeaderBytes || header_bytes > bytes.size() - 8) {
    return bad(fmt::format("its header claims {} bytes", header_bytes));
  }
  const auto* text = reinterpret_cast<const char*>(bytes.data()) + 8;
  const Json header = Json::parse(text, text + header_bytes, nullptr, /*allow_exceptions=*/false);
  if (!header.is_object()) return bad("its header is not a JSON object");
  const auto data = bytes.subspan(8 + header_bytes);
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") continue;
    if (wanted != nullptr && !wanted->contains(name)) continue;
    auto tensor = read_entry(path, name, entry, data);
    if (!tensor.ok() && tensor.error().code != ErrorCode::kUnimplemented) return std::move(tensor).error();
    tensors_.insert_or_assign(name, std::move(tensor));
  }
  if (wanted != nullptr) {
    for (const std::string& name : *wanted) {
      if (!tensors_.contains(name)) return bad(fmt::format("the index says that it holds {}, which it does not", name));
    }
  }
  files_.push_back(std::move(file));
  return {};
}

}  // namespace

Result<std::unique_ptr<TensorSource>> open_safetensors_file(const std::string& path) {
  auto source = std::make_unique<SafetensorsSource>(path);
  SLUICE_TRY_VOID(source->add_file(path, nullptr));
  return std::unique_ptr<TensorSource>(std::move(source));
}

Result<std::unique_ptr<TensorSource>> open_safetensors(const std::string& folder) {
  const fs::path base(folder);
  std::error_code ignored;
  if (fs::exists(base / "model.safetensors", ignored)) return open_safetensors_file(base / "model.safetensors");
  const fs::path index_path = base / "model.safetensors.index.json";
  if (!fs::exists(index_path, ignored)) {
    return Error{ErrorCode::kNotFound,
                 fmt::format("{}: neither model.safetensors nor model.safetensors.index.json is there", folder)};
  }
  SLUICE_TRY(auto file, MappedFile::open(index_path));
  const auto* text = reinterpret_cast<const char*>(file->bytes().data());
  const Json index = Json::parse(text, text + file->bytes().size(), nullptr, /*allow_exceptions=*/false);
  if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object()) {
    return Error{ErrorCode::kProtocol, fmt::format("{}: no weight_map object", index_path.string())};
  }
  std::map<std::string, std::set<std::string>> shards;
  for (const auto& [name, shard] : index["weight_map"].items()) {
    // A shard is a file of this folder: nothing else may be reached through an index.
    if (!shard.is_string() ||
        shard.get_ref<const std::string&>().find_first_of(std::string_view("/\0", 2)) != std::string::npos) {
      return Error{ErrorCode::kProtocol,
                   fmt::format("{}: the shard of {} is not a file name", index_path.string(), name)};
    }
    shards[shard.get<std::string>()].insert(name);
  }
  auto source = std::make_unique<SafetensorsSource>(folder);
  for (const auto& [shard, names] : shards) SLUICE_TRY_VOID(source->add_file(base / shard, &names));
  return std::unique_ptr<TensorSource>(std::move(source));
}

}  // namespace sluice::tensor

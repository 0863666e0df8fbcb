// GGUF files: tensors lie within the file and can be read, what was read comes back when it is written and read again,
// and a vocabulary is refused or becomes a tokenizer.
#include "tensor/gguf.h"

#include <cstring>

#include "engine/tokenizer_files.h"
#include "fuzz.h"
#include "memory_file.h"
#include "tensors.h"
#include "texts.h"

using namespace sluice;
using tensor::DType;
using tensor::GgufFile;

namespace {

template <class T>
void put(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof(T));
}
void put_text(std::string& out, std::string_view text) {
  put<uint64_t>(out, text.size());
  out += text;
}

// A value in the widest type of its kind.
void put_value(std::string& out, int64_t value) { put(out, value); }
void put_value(std::string& out, double value) { put(out, value); }
void put_value(std::string& out, bool value) { put<uint8_t>(out, value); }
void put_value(std::string& out, const std::string& value) { put_text(out, value); }

template <class T>
constexpr uint32_t type_of() {
  return std::is_same_v<T, int64_t> ? 11 : std::is_same_v<T, double> ? 12 : std::is_same_v<T, bool> ? 7 : 8;
}
template <class T>
void put_typed(std::string& out, const T& value) {
  put(out, type_of<T>());
  put_value(out, value);
}
template <class T>
void put_typed(std::string& out, const std::vector<T>& values) {
  put<uint32_t>(out, 9);
  put(out, type_of<T>());
  put<uint64_t>(out, values.size());
  for (const T& value : values) put_value(out, value);
}

uint32_t ggml_type(DType dtype) {
  constexpr std::pair<DType, uint32_t> kTypes[] = {{DType::kF32, 0},   {DType::kF16, 1},  {DType::kQ4_0, 2},
                                                   {DType::kQ4_1, 3},  {DType::kQ8_0, 8}, {DType::kQ4_K, 12},
                                                   {DType::kQ6_K, 14}, {DType::kBf16, 30}};
  for (const auto& [known, type] : kTypes) {
    if (known == dtype) return type;
  }
  FUZZ_CHECK(false, "a type of GGUF files");
  return 0;
}

std::string written(const GgufFile& file) {
  std::string out = "GGUF", data;
  put<uint32_t>(out, 3);
  put<uint64_t>(out, file.tensors().size());
  put<uint64_t>(out, file.metadata().size());
  for (const auto& [key, value] : file.metadata()) {
    put_text(out, key);
    std::visit([&](const auto& held) { put_typed(out, held); }, value);
  }
  for (const auto& [name, tensor] : file.tensors()) {
    put_text(out, name);
    put(out, static_cast<uint32_t>(tensor.shape.size()));
    for (size_t i = tensor.shape.size(); i > 0; --i) put(out, static_cast<uint64_t>(tensor.shape[i - 1]));
    put(out, ggml_type(tensor.dtype));
    put<uint64_t>(out, data.size());
    data.append(reinterpret_cast<const char*>(tensor.data.data()), tensor.data.size());
  }
  const auto* alignment = file.get<int64_t>("general.alignment");
  const size_t unit = alignment == nullptr ? 32 : static_cast<size_t>(*alignment);
  out.resize((out.size() + unit - 1) / unit * unit);
  return out + data;
}

fuzz::MemoryFile& memory() {
  static fuzz::MemoryFile file;
  return file;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string bytes(reinterpret_cast<const char*>(data), size);
  memory().fill(bytes);
  auto file = GgufFile::open(memory().path());
  if (!file.ok()) {
    FUZZ_CHECK(file.error().message.starts_with(memory().path()), "an error names the file");
    return 0;
  }
  for (const auto& [name, tensor] : (*file)->tensors()) {
    FUZZ_CHECK(name == tensor.name && !tensor.shape.empty(), "a tensor has a name and dimensions");
    fuzz::check_tensor(tensor);
  }
  const std::string once = written(**file);
  file.value().reset();
  memory().fill(once);
  const auto again = GgufFile::open(memory().path());
  FUZZ_CHECK(again.ok(), "what was read can be written");
  FUZZ_CHECK(written(**again) == once, "what is written is read as it was");
  if ((*again)->metadata().contains("tokenizer.ggml.tokens")) {
    const auto tokenizer = engine::load_tokenizer(memory().path());
    if (tokenizer.ok()) fuzz::check_tokenizer(*tokenizer, "ab  abc\xE4\xBD\xA0\xFF <s>12 b");
  }
  return 0;
}

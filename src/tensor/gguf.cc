#include "tensor/gguf.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

namespace sluice::tensor {
namespace {

// A cursor over the header that never reads past the end.
class Reader {
 public:
  Reader(const std::string& path, std::span<const std::byte> bytes) : path_(path), bytes_(bytes) {}

  template <class T>
  Result<T> number(std::string_view what) {
    T value;
    if (bytes_.size() - position_ < sizeof(T)) return truncated(what);
    std::memcpy(&value, bytes_.data() + position_, sizeof(T));
    position_ += sizeof(T);
    return value;
  }
  Result<std::string> text(std::string_view what) {
    SLUICE_TRY(const uint64_t size, number<uint64_t>(what));
    if (size > bytes_.size() - position_) return truncated(what);
    std::string value(reinterpret_cast<const char*>(bytes_.data()) + position_, size);
    position_ += size;
    return value;
  }
  Error bad(std::string_view what, std::string_view reason) const {
    return {ErrorCode::kProtocol, fmt::format("{}: {}: {}", path_, what, reason)};
  }
  Error truncated(std::string_view what) const { return bad(what, "the file ends in the middle of it"); }
  size_t position() const { return position_; }
  size_t left() const { return bytes_.size() - position_; }

 private:
  const std::string& path_;
  std::span<const std::byte> bytes_;
  size_t position_ = 0;
};

// The format's numbers for value types.
enum class ValueType : uint32_t { kU8, kI8, kU16, kI16, kU32, kI32, kF32, kBool, kString, kArray, kU64, kI64, kF64 };

constexpr uint64_t kMostValues = uint64_t{1} << 27;  // of an array: far above every vocabulary

// What a value takes in the file at least; 0: no such type.
size_t smallest_bytes(ValueType type) {
  switch (type) {
    case ValueType::kU8:
    case ValueType::kI8:
    case ValueType::kBool:
      return 1;
    case ValueType::kU16:
    case ValueType::kI16:
      return 2;
    case ValueType::kU32:
    case ValueType::kI32:
    case ValueType::kF32:
      return 4;
    case ValueType::kString:
    case ValueType::kArray:
    case ValueType::kU64:
    case ValueType::kI64:
    case ValueType::kF64:
      return 8;
  }
  return 0;
}

template <class T>
Result<int64_t> integer(Reader& reader, std::string_view key) {
  SLUICE_TRY(const T value, reader.number<T>(key));
  return static_cast<int64_t>(value);
}

Result<GgufValue> read_value(Reader& reader, std::string_view key, ValueType type);

template <class T>
Result<GgufValue> read_array(Reader& reader, std::string_view key, ValueType type, uint64_t count) {
  std::vector<T> values;
  values.reserve(count);
  for (uint64_t i = 0; i < count; ++i) {
    SLUICE_TRY(GgufValue value, read_value(reader, key, type));
    values.push_back(std::move(std::get<T>(value)));
  }
  return GgufValue(std::move(values));
}

Result<GgufValue> read_value(Reader& reader, std::string_view key, ValueType type) {
  const auto widen = [](Result<int64_t> value) -> Result<GgufValue> {
    if (!value.ok()) return std::move(value).error();
    return GgufValue(*value);
  };
  switch (type) {
    case ValueType::kU8:
      return widen(integer<uint8_t>(reader, key));
    case ValueType::kI8:
      return widen(integer<int8_t>(reader, key));
    case ValueType::kU16:
      return widen(integer<uint16_t>(reader, key));
    case ValueType::kI16:
      return widen(integer<int16_t>(reader, key));
    case ValueType::kU32:
      return widen(integer<uint32_t>(reader, key));
    case ValueType::kI32:
      return widen(integer<int32_t>(reader, key));
    case ValueType::kU64:
      return widen(integer<uint64_t>(reader, key));
    case ValueType::kI64:
      return widen(integer<int64_t>(reader, key));
    case ValueType::kF32: {
      SLUICE_TRY(const float value, reader.number<float>(key));
      return GgufValue(static_cast<double>(value));
    }
    case ValueType::kF64: {
      SLUICE_TRY(const double value, reader.number<double>(key));
      return GgufValue(value);
    }
    case ValueType::kBool: {
      SLUICE_TRY(const uint8_t value, reader.number<uint8_t>(key));
      return GgufValue(value != 0);
    }
    case ValueType::kString: {
      SLUICE_TRY(std::string value, reader.text(key));
      return GgufValue(std::move(value));
    }
    case ValueType::kArray: {
      SLUICE_TRY(const uint32_t element, reader.number<uint32_t>(key));
      SLUICE_TRY(const uint64_t count, reader.number<uint64_t>(key));
      const auto kind = static_cast<ValueType>(element);
      if (kind == ValueType::kArray) return reader.bad(key, "arrays of arrays are not supported");
      const size_t smallest = smallest_bytes(kind);
      if (smallest == 0) return reader.bad(key, fmt::format("unknown value type {}", element));
      // A count beyond the file is a lie, and values become wider than they are in the file: both are found out before
      // memory is reserved.
      if (count > reader.left() / smallest) return reader.truncated(key);
      if (count > kMostValues) {
        return reader.bad(key, fmt::format("an array of {} values; {} at most are read", count, kMostValues));
      }
      switch (kind) {
        case ValueType::kF32:
        case ValueType::kF64:
          return read_array<double>(reader, key, kind, count);
        case ValueType::kBool:
          return read_array<bool>(reader, key, kind, count);
        case ValueType::kString:
          return read_array<std::string>(reader, key, kind, count);
        default:
          return read_array<int64_t>(reader, key, kind, count);
      }
    }
  }
  return reader.bad(key, fmt::format("unknown value type {}", static_cast<uint32_t>(type)));
}

bool dtype_from_ggml(uint32_t type, DType& dtype) {
  switch (type) {
    case 0:
      dtype = DType::kF32;
      return true;
    case 1:
      dtype = DType::kF16;
      return true;
    case 2:
      dtype = DType::kQ4_0;
      return true;
    case 3:
      dtype = DType::kQ4_1;
      return true;
    case 8:
      dtype = DType::kQ8_0;
      return true;
    case 12:
      dtype = DType::kQ4_K;
      return true;
    case 14:
      dtype = DType::kQ6_K;
      return true;
    case 30:
      dtype = DType::kBf16;
      return true;
    default:
      return false;
  }
}

}  // namespace

Result<std::shared_ptr<const GgufFile>> GgufFile::open(const std::string& path) {
  SLUICE_TRY(auto file, MappedFile::open(path));
  Reader reader(path, file->bytes());
  SLUICE_TRY(const uint32_t magic, reader.number<uint32_t>("header"));
  if (magic != 0x46554747) return reader.bad("header", "not a GGUF file");
  SLUICE_TRY(const uint32_t version, reader.number<uint32_t>("header"));
  if (version != 2 && version != 3) {
    return reader.bad("header", fmt::format("GGUF version {} is not supported; 2 and 3 are", version));
  }
  SLUICE_TRY(const uint64_t tensor_count, reader.number<uint64_t>("header"));
  SLUICE_TRY(const uint64_t value_count, reader.number<uint64_t>("header"));

  std::shared_ptr<GgufFile> gguf(new GgufFile);
  gguf->file_ = file;
  for (uint64_t i = 0; i < value_count; ++i) {
    SLUICE_TRY(std::string key, reader.text("a metadata key"));
    SLUICE_TRY(const uint32_t type, reader.number<uint32_t>(key));
    SLUICE_TRY(GgufValue value, read_value(reader, key, static_cast<ValueType>(type)));
    gguf->metadata_.insert_or_assign(std::move(key), std::move(value));
  }

  struct Placed {
    StoredTensor tensor;
    uint64_t offset;
    uint64_t bytes;
  };
  std::vector<Placed> placed;
  for (uint64_t i = 0; i < tensor_count; ++i) {
    SLUICE_TRY(std::string name, reader.text("a tensor's name"));
    const std::string what = "tensor " + name;
    SLUICE_TRY(const uint32_t dimensions, reader.number<uint32_t>(what));
    if (dimensions == 0 || dimensions > 4) return reader.bad(what, fmt::format("{} dimensions", dimensions));
    StoredTensor tensor;
    tensor.name = name;
    uint64_t elements = 1, bound = 1;  // the bound counts an extent of 0 as 1: it does not excuse what the others make
    for (uint32_t d = 0; d < dimensions; ++d) {
      SLUICE_TRY(const uint64_t extent, reader.number<uint64_t>(what));
      if (extent > uint64_t{1} << 40 || (extent != 0 && bound > (uint64_t{1} << 48) / extent)) {
        return reader.bad(what, "its shape is larger than any file");
      }
      elements *= extent;
      bound *= std::max<uint64_t>(extent, 1);
      tensor.shape.insert(tensor.shape.begin(), static_cast<int64_t>(extent));  // stored innermost first
    }
    SLUICE_TRY(const uint32_t type, reader.number<uint32_t>(what));
    if (!dtype_from_ggml(type, tensor.dtype)) {
      return reader.bad(what,
                        fmt::format("element type {} is not supported (F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q4_K and "
                                    "Q6_K are)",
                                    type));
    }
    if (static_cast<uint64_t>(tensor.shape.back()) % block_elements(tensor.dtype) != 0) {
      return reader.bad(what, fmt::format("rows of {} values are not whole blocks of {}", tensor.shape.back(),
                                          to_string(tensor.dtype)));
    }
    SLUICE_TRY(const uint64_t offset, reader.number<uint64_t>(what));
    const uint64_t bytes = bytes_of(tensor.dtype, elements);
    placed.push_back({std::move(tensor), offset, bytes});
  }

  uint64_t alignment = 32;
  if (const auto* value = gguf->get<int64_t>("general.alignment"); value != nullptr) {
    if (*value < 1 || *value > 1 << 20)
      return reader.bad("general.alignment", fmt::format("{} is no alignment", *value));
    alignment = static_cast<uint64_t>(*value);
  }
  const uint64_t data_start = (reader.position() + alignment - 1) / alignment * alignment;
  const uint64_t data_bytes = file->bytes().size() > data_start ? file->bytes().size() - data_start : 0;
  for (Placed& item : placed) {
    if (item.offset > data_bytes || item.bytes > data_bytes - item.offset) {
      return reader.bad("tensor " + item.tensor.name,
                        fmt::format("its data {}+{} lies outside the {} bytes of the file's "
                                    "data",
                                    item.offset, item.bytes, data_bytes));
    }
    // A file without any data may end before they would begin.
    if (item.bytes > 0) item.tensor.data = file->bytes().subspan(data_start + item.offset, item.bytes);
    std::string name = item.tensor.name;
    gguf->tensors_.insert_or_assign(std::move(name), std::move(item.tensor));
  }
  return std::shared_ptr<const GgufFile>(std::move(gguf));
}

}  // namespace sluice::tensor

// Reads the metadata of a GGUF file that are an architecture's own.
#pragma once

#include <fmt/format.h>

#include <optional>
#include <string>
#include <string_view>

#include "base/result.h"
#include "tensor/gguf.h"

namespace sluice::models {

// Keys without the architecture's name before them. Remembers the first one that is missing or wrong.
class GgufFields {
 public:
  GgufFields(const tensor::GgufFile& file, std::string_view architecture) : file_(file), architecture_(architecture) {}

  int64_t whole(std::string_view key, int64_t min, std::optional<int64_t> otherwise = std::nullopt) {
    const auto* value = file_.get<int64_t>(full(key));
    if (value == nullptr && otherwise) return *otherwise;
    if (value == nullptr) {
      fail(key, "is missing");
    } else if (*value < min || *value > int64_t{1} << 32) {
      fail(key, fmt::format("{} is not a whole number of at least {}", *value, min));
    } else {
      return *value;
    }
    return min;
  }
  double real(std::string_view key, double otherwise) const {
    const auto* value = file_.get<double>(full(key));
    return value == nullptr ? otherwise : *value;
  }
  bool has(std::string_view key) const { return file_.metadata().contains(full(key)); }
  bool flag(std::string_view key, bool otherwise) const {
    const auto* value = file_.get<bool>(full(key));
    return value == nullptr ? otherwise : *value;
  }
  Error wrong(std::string_view key, std::string_view why, ErrorCode code = ErrorCode::kProtocol) const {
    return {code, fmt::format("{}: {} {}", file_.path(), full(key), why)};
  }
  const std::optional<Error>& error() const { return error_; }

 private:
  std::string full(std::string_view key) const { return fmt::format("{}.{}", architecture_, key); }
  void fail(std::string_view key, std::string_view why) {
    if (!error_) error_ = wrong(key, why);
  }

  const tensor::GgufFile& file_;
  const std::string architecture_;
  std::optional<Error> error_;
};

}  // namespace sluice::models

#include "gateway/simulator/workload.h"

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>
#include <span>

#include "base/rng.h"

namespace sluice::gateway {
namespace {

using Json = nlohmann::json;

constexpr int64_t kTraceBlockTokens = 512;
constexpr int64_t kCharsPerToken = 4;

void write_letters(std::span<char> out, Rng& rng) {
  Rng own = rng;  // stays in registers: a character might be written anywhere, for all that the compiler knows
  for (char& letter : out) letter = static_cast<char>('a' + own.below(26));
  rng = own;
}

class Groups final : public Workload {
 public:
  explicit Groups(const GroupsOptions& options) : options_(options), rng_(options.seed) {
    const auto system = static_cast<size_t>(options.system_chars);
    for (int64_t group = 0; group < options.groups; ++group) {
      std::string& text = texts_.emplace_back(system + static_cast<size_t>(options.question_chars), '\0');
      write_letters(std::span(text).first(system), rng_);
    }
    order_.resize(static_cast<size_t>(options.groups));
    std::iota(order_.begin(), order_.end(), size_t{0});
    place_ = order_.size();
  }

  std::optional<SimulatedRequest> next() override {
    const size_t group = next_group();
    std::string& text = texts_[group];
    SimulatedRequest request;
    request.at = now_;
    request.beginning = group + 1;
    request.beginning_chars = static_cast<size_t>(options_.system_chars);
    write_letters(std::span(text).subspan(request.beginning_chars), rng_);
    request.text = text;
    if (options_.rate > 0) {
      const double uniform =
          (static_cast<double>(rng_.below(uint64_t{1} << 53)) + 1) / static_cast<double>(uint64_t{1} << 53);
      now_ += from_seconds(-std::log(uniform) / options_.rate);
    }
    return request;
  }

 private:
  size_t next_group() {
    if (options_.hot && rng_.below(2) == 0) return 0;
    if (place_ == order_.size()) {
      for (size_t i = order_.size(); i > 1; --i) std::swap(order_[i - 1], order_[rng_.below(i)]);
      place_ = 0;
    }
    return order_[place_++];
  }

  const GroupsOptions options_;
  Rng rng_;
  std::vector<std::string> texts_;  // of each group: its beginning and the latest question
  std::vector<size_t> order_;
  size_t place_ = 0;
  Duration now_{0};
};

// A request whose text this holds.
struct Kept {
  std::string text;
  SimulatedRequest request;
};

class Trace final : public Workload {
 public:
  explicit Trace(std::vector<Kept> requests) : requests_(std::move(requests)) {}
  std::optional<SimulatedRequest> next() override {
    if (place_ > 0) requests_[place_ - 1].text = {};  // a trace may be large
    if (place_ == requests_.size()) return std::nullopt;
    Kept& kept = requests_[place_++];
    kept.request.text = kept.text;
    return kept.request;
  }

 private:
  std::vector<Kept> requests_;
  size_t place_ = 0;
};

constexpr uint64_t kMostTokens = 4'000'000;
constexpr std::chrono::seconds kLongestTrace{4'000'000};  // the age of a prefix is counted in 32 bits of milliseconds
constexpr double kMostMillis = 9e12;                      // beyond it nanoseconds do not fit

bool is_count(const Json& line, const char* key) {
  return line.contains(key) && line[key].is_number_unsigned() && line[key].get<uint64_t>() <= kMostTokens;
}

// The text of a line; none if the line does not say.
std::optional<std::string> text_of(const Json& line) {
  if (line.contains("text") && line["text"].is_string()) return line["text"].get<std::string>();
  if (!line.contains("hash_ids") || !line["hash_ids"].is_array() || !is_count(line, "input_length"))
    return std::nullopt;
  const int64_t chars = line["input_length"].get<int64_t>() * kCharsPerToken;
  std::string text;
  for (const auto& id : line["hash_ids"]) {
    if (!id.is_number_unsigned()) return std::nullopt;
    Rng rng(id.get<uint64_t>());
    const auto begin = static_cast<int64_t>(text.size());
    text.resize(static_cast<size_t>(std::max(begin, std::min(begin + kTraceBlockTokens * kCharsPerToken, chars))));
    write_letters(std::span(text).subspan(static_cast<size_t>(begin)), rng);
  }
  return text;
}

}  // namespace

std::unique_ptr<Workload> make_groups(const GroupsOptions& options) { return std::make_unique<Groups>(options); }

Result<std::unique_ptr<Workload>> read_trace(const std::string& path, Duration decode_per_token) {
  std::ifstream file(path);
  if (!file) return Error{ErrorCode::kNotFound, fmt::format("{}: cannot be read", path)};
  std::vector<Kept> requests;
  std::string text;
  for (int number = 1; std::getline(file, text); ++number) {
    if (text.empty()) continue;
    const Json line = Json::parse(text, nullptr, false);
    const auto bad = [&](const char* what) {
      return Error{ErrorCode::kInvalidArgument, fmt::format("{}:{}: {}", path, number, what)};
    };
    if (!line.is_object()) return bad("not a JSON object");
    const double millis =
        line.contains("timestamp") && line["timestamp"].is_number() ? line["timestamp"].get<double>() : -1;
    if (!(millis >= 0 && millis <= kMostMillis)) return bad("timestamp must be a number of milliseconds, at most 9e12");
    auto prompt = text_of(line);
    if (!prompt || prompt->empty()) return bad("a prompt is missing: text, or hash_ids and input_length");
    SimulatedRequest request;
    request.at = from_seconds(millis / 1000);
    if (line.contains("output_length")) {
      if (!is_count(line, "output_length")) return bad("output_length must be a whole number in [0, 4000000]");
      request.output_tokens = std::max<int64_t>(1, line["output_length"].get<int64_t>());
      request.decode = *request.output_tokens * decode_per_token;
    }
    requests.push_back({std::move(*prompt), request});
  }
  if (requests.empty()) return Error{ErrorCode::kInvalidArgument, fmt::format("{}: has no requests", path)};
  std::ranges::stable_sort(requests, {}, [](const Kept& kept) { return kept.request.at; });
  const Duration begin = requests.front().request.at;
  for (Kept& kept : requests) kept.request.at -= begin;
  if (requests.back().request.at > kLongestTrace) {
    return Error{ErrorCode::kInvalidArgument, fmt::format("{}: is of more than {} s", path, kLongestTrace.count())};
  }
  return std::unique_ptr<Workload>(std::make_unique<Trace>(std::move(requests)));
}

}  // namespace sluice::gateway

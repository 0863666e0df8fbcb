#include "gateway/simulator/workload.h"

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>

#include "base/rng.h"

namespace sluice::gateway {
namespace {

using Json = nlohmann::json;

constexpr int64_t kTraceBlockTokens = 512;
constexpr int64_t kCharsPerToken = 4;

void append_letters(std::string& out, int64_t count, Rng& rng) {
  for (int64_t i = 0; i < count; ++i) out += static_cast<char>('a' + rng.below(26));
}

class Groups final : public Workload {
 public:
  explicit Groups(const GroupsOptions& options) : options_(options), rng_(options.seed) {
    for (int64_t group = 0; group < options.groups; ++group)
      append_letters(systems_.emplace_back(), options.system_chars, rng_);
    order_.resize(static_cast<size_t>(options.groups));
    std::iota(order_.begin(), order_.end(), size_t{0});
    place_ = order_.size();
  }

  std::optional<SimulatedRequest> next() override {
    SimulatedRequest request{.at = now_, .text = systems_[next_group()]};
    append_letters(request.text, options_.question_chars, rng_);
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
  std::vector<std::string> systems_;
  std::vector<size_t> order_;
  size_t place_ = 0;
  Duration now_{0};
};

class Trace final : public Workload {
 public:
  explicit Trace(std::vector<SimulatedRequest> requests) : requests_(std::move(requests)) {}
  std::optional<SimulatedRequest> next() override {
    if (place_ == requests_.size()) return std::nullopt;
    return std::move(requests_[place_++]);
  }

 private:
  std::vector<SimulatedRequest> requests_;
  size_t place_ = 0;
};

bool is_count(const Json& line, const char* key) { return line.contains(key) && line[key].is_number_unsigned(); }

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
    append_letters(text, std::min(kTraceBlockTokens * kCharsPerToken, chars - static_cast<int64_t>(text.size())), rng);
  }
  return text;
}

}  // namespace

std::unique_ptr<Workload> make_groups(const GroupsOptions& options) { return std::make_unique<Groups>(options); }

Result<std::unique_ptr<Workload>> read_trace(const std::string& path, Duration decode_per_token) {
  std::ifstream file(path);
  if (!file) return Error{ErrorCode::kNotFound, fmt::format("{}: cannot be read", path)};
  std::vector<SimulatedRequest> requests;
  std::string text;
  for (int number = 1; std::getline(file, text); ++number) {
    if (text.empty()) continue;
    const Json line = Json::parse(text, nullptr, false);
    const auto bad = [&](const char* what) {
      return Error{ErrorCode::kInvalidArgument, fmt::format("{}:{}: {}", path, number, what)};
    };
    if (!line.is_object()) return bad("not a JSON object");
    if (!line.contains("timestamp") || !line["timestamp"].is_number())
      return bad("timestamp must be a number of milliseconds");
    auto prompt = text_of(line);
    if (!prompt || prompt->empty()) return bad("a prompt is missing: text, or hash_ids and input_length");
    SimulatedRequest request{.at = from_seconds(line["timestamp"].get<double>() / 1000), .text = std::move(*prompt)};
    if (is_count(line, "output_length")) request.decode = line["output_length"].get<int64_t>() * decode_per_token;
    requests.push_back(std::move(request));
  }
  if (requests.empty()) return Error{ErrorCode::kInvalidArgument, fmt::format("{}: has no requests", path)};
  std::ranges::stable_sort(requests, {}, &SimulatedRequest::at);
  const Duration begin = requests.front().at;
  for (SimulatedRequest& request : requests) request.at -= begin;
  return std::unique_ptr<Workload>(std::make_unique<Trace>(std::move(requests)));
}

}  // namespace sluice::gateway

#include "protocol/kv_events.h"

#include <xxhash.h>

#include <array>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

namespace sluice::protocol {
namespace {

using Json = nlohmann::json;

// Names of members in the map form, and their places in the array form.
enum class Member : uint8_t {
  kOther,
  kTimestamp,
  kEvents,
  kRank,
  kKind,
  kHashes,
  kParent,
  kTokens,
  kBlockSize,
  kLoraId,
  kMedium,
  kLoraName,
  kExtraKeys,
  kGroup,
  kGroupKind,
};

constexpr std::array kBatchMembers{Member::kTimestamp, Member::kEvents, Member::kRank};
constexpr std::array kStoredMembers{Member::kKind,      Member::kHashes, Member::kParent,   Member::kTokens,
                                    Member::kBlockSize, Member::kLoraId, Member::kMedium,   Member::kLoraName,
                                    Member::kExtraKeys, Member::kGroup,  Member::kGroupKind};
constexpr std::array kRemovedMembers{Member::kKind, Member::kHashes, Member::kMedium, Member::kGroup};

Member member_named(std::string_view name) {
  constexpr std::pair<std::string_view, Member> kNames[] = {
      {"ts", Member::kTimestamp},
      {"events", Member::kEvents},
      {"data_parallel_rank", Member::kRank},
      {"attn_dp_rank", Member::kRank},
      {"type", Member::kKind},
      {"block_hashes", Member::kHashes},
      {"parent_block_hash", Member::kParent},
      {"token_ids", Member::kTokens},
      {"block_size", Member::kBlockSize},
      {"lora_id", Member::kLoraId},
      {"medium", Member::kMedium},
      {"lora_name", Member::kLoraName},
      {"extra_keys", Member::kExtraKeys},
      {"group_idx", Member::kGroup},
      {"kv_cache_spec_kind", Member::kGroupKind},
  };
  for (const auto& [known, member] : kNames) {
    if (known == name) return member;
  }
  return Member::kOther;
}

// One value that is no container.
struct Scalar {
  enum class Kind : uint8_t { kNull, kInteger, kFloat, kText, kBytes, kOther } kind = Kind::kNull;
  int64_t integer = 0;
  double number = 0;
  std::string_view text{};
};

// Fills a batch while the parser walks over the message: nothing is built that an event does not need. Its depth is
// bounded, because the parser calls itself.
class Reader final : public nlohmann::json_sax<Json> {
 public:
  KvEventBatch batch;
  bool saw_events = false;

  bool null() override { return scalar({}); }
  bool boolean(bool) override { return scalar({.kind = Scalar::Kind::kOther}); }
  bool number_integer(number_integer_t value) override {
    return scalar({.kind = Scalar::Kind::kInteger, .integer = value});
  }
  bool number_unsigned(number_unsigned_t value) override {
    return scalar({.kind = Scalar::Kind::kInteger, .integer = static_cast<int64_t>(value)});
  }
  bool number_float(number_float_t value, const string_t&) override {
    return scalar({.kind = Scalar::Kind::kFloat, .number = value});
  }
  bool string(string_t& value) override { return scalar({.kind = Scalar::Kind::kText, .text = value}); }
  bool binary(binary_t& value) override {
    return scalar({.kind = Scalar::Kind::kBytes, .text = {reinterpret_cast<const char*>(value.data()), value.size()}});
  }
  bool start_object(size_t) override { return open(/*is_map=*/true); }
  bool start_array(size_t) override { return open(/*is_map=*/false); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }
  bool key(string_t& name) override {
    levels_[depth_ - 1].member = member_named(name);
    return true;
  }
  bool parse_error(size_t, const std::string&, const nlohmann::detail::exception&) override { return false; }

 private:
  static constexpr size_t kMostLevels = 8;
  // The levels that mean something: the batch, its list of events, an event, a list in it.
  static constexpr size_t kBatch = 1, kEvents = 2, kEvent = 3, kList = 4;
  struct Level {
    bool is_map = false;
    size_t next = 0;                 // place, in an array
    Member member = Member::kOther;  // of a map, by its last key; of a list, which it is
  };

  Level& top() { return levels_[depth_ - 1]; }

  // Which member of the batch or the event the next value is.
  Member take_member() {
    Level& level = top();
    if (level.is_map) return level.member;
    const size_t place = level.next++;
    if (depth_ == kBatch) return place < kBatchMembers.size() ? kBatchMembers[place] : Member::kOther;
    if (place == 0) return Member::kKind;
    if (kind_ == KvEvent::Kind::kStored) return place < kStoredMembers.size() ? kStoredMembers[place] : Member::kOther;
    if (kind_ == KvEvent::Kind::kRemoved) {
      return place < kRemovedMembers.size() ? kRemovedMembers[place] : Member::kOther;
    }
    return Member::kOther;
  }

  bool open(bool is_map) {
    if (depth_ == kMostLevels) return false;
    Member member = Member::kOther;
    if (depth_ == kBatch || (depth_ == kEvent && in_events_)) member = take_member();
    if (depth_ >= kList) member = top().member;  // what is deeper belongs to the list
    if (depth_ == kBatch) in_events_ = member == Member::kEvents && !is_map;
    if (depth_ == kEvents && in_events_) begin_event();
    if (depth_ == kEvent && is_unexpected_list(member)) is_bad_ = true;
    if (depth_ >= kList && in_events_ && member != Member::kExtraKeys && member != Member::kOther) is_bad_ = true;
    levels_[depth_++] = {is_map, 0, member};
    saw_events = saw_events || (depth_ == kEvents && in_events_);
    return true;
  }
  static bool is_unexpected_list(Member member) {
    return member != Member::kHashes && member != Member::kTokens && member != Member::kExtraKeys &&
           member != Member::kOther;
  }

  bool close() {
    --depth_;
    if (depth_ == kEvents && in_events_) end_event();
    if (depth_ == kBatch) in_events_ = false;
    return true;
  }

  bool scalar(const Scalar& value) {
    if (depth_ == 0) return false;
    if (depth_ == kBatch) {
      const Member member = take_member();
      if (member == Member::kTimestamp) batch.timestamp = value.number;
      if (member == Member::kRank && value.kind == Scalar::Kind::kInteger) batch.dp_rank = value.integer;
      return member != Member::kEvents;
    }
    if (!in_events_) return true;
    if (depth_ == kEvents) ++batch.unreadable;
    if (depth_ == kEvent) set(take_member(), value);
    if (depth_ >= kList) append(top().member, value);
    return true;
  }

  void begin_event() {
    event_ = {};
    kind_.reset();
    is_bad_ = false;
  }

  void end_event() {
    if (!kind_) is_bad_ = true;
    const size_t blocks = event_.hashes.size();
    if (kind_ == KvEvent::Kind::kStored) {
      is_bad_ = is_bad_ || event_.block_size <= 0 || blocks == 0 || event_.token_ids.size() % blocks != 0 ||
                event_.token_ids.size() / blocks != static_cast<size_t>(event_.block_size);
    }
    if (is_bad_) {
      ++batch.unreadable;
      return;
    }
    event_.kind = *kind_;
    batch.events.push_back(std::move(event_));
  }

  static std::optional<KvBlockHash> hash_of(const Scalar& value) {
    if (value.kind == Scalar::Kind::kInteger) return static_cast<KvBlockHash>(value.integer);
    if (value.kind == Scalar::Kind::kBytes) return XXH3_64bits(value.text.data(), value.text.size());
    return std::nullopt;
  }

  void set(Member member, const Scalar& value) {
    const bool is_null = value.kind == Scalar::Kind::kNull;
    const bool is_integer = value.kind == Scalar::Kind::kInteger;
    const bool is_text = value.kind == Scalar::Kind::kText;
    switch (member) {
      case Member::kKind:
        if (value.text == "BlockStored") kind_ = KvEvent::Kind::kStored;
        if (value.text == "BlockRemoved") kind_ = KvEvent::Kind::kRemoved;
        if (value.text == "AllBlocksCleared") kind_ = KvEvent::Kind::kCleared;
        break;
      case Member::kParent:
        event_.parent = hash_of(value);
        is_bad_ = is_bad_ || (!event_.parent && !is_null);
        break;
      case Member::kBlockSize:
        event_.block_size = value.integer;
        break;
      case Member::kMedium:
        if (is_text) event_.medium = value.text;
        break;
      case Member::kLoraId:
      case Member::kLoraName:
        event_.keyed = event_.keyed || !is_null;
        break;
      case Member::kGroup:
        if (is_integer) event_.group = value.integer;
        break;
      case Member::kGroupKind:
        if (is_text) event_.group_kind = value.text;
        break;
      case Member::kHashes:
      case Member::kTokens:
        is_bad_ = true;
        break;
      default:
        break;
    }
  }

  void append(Member member, const Scalar& value) {
    switch (member) {
      case Member::kHashes: {
        const auto hash = hash_of(value);
        is_bad_ = is_bad_ || !hash;
        if (hash) event_.hashes.push_back(*hash);
        break;
      }
      case Member::kTokens:
        if (value.kind != Scalar::Kind::kInteger || value.integer < 0 ||
            value.integer > std::numeric_limits<int32_t>::max()) {
          is_bad_ = true;
        } else {
          event_.token_ids.push_back(static_cast<int32_t>(value.integer));
        }
        break;
      case Member::kExtraKeys:
        event_.keyed = event_.keyed || value.kind != Scalar::Kind::kNull;
        break;
      default:
        break;
    }
  }

  std::array<Level, kMostLevels> levels_{};
  size_t depth_ = 0;
  bool in_events_ = false;
  KvEvent event_;  // the one that is being read
  std::optional<KvEvent::Kind> kind_;
  bool is_bad_ = false;
};

}  // namespace

Result<KvEventBatch> decode_kv_events(std::string_view payload) {
  if (payload.size() > kMostKvPayload) {
    return Error{ErrorCode::kTooLarge,
                 fmt::format("a batch of KV events has {} bytes, {} at most are read", payload.size(), kMostKvPayload)};
  }
  Reader reader;
  if (!Json::sax_parse(payload.begin(), payload.end(), &reader, Json::input_format_t::msgpack) || !reader.saw_events) {
    return Error{ErrorCode::kProtocol, "a message of KV events is not [timestamp, events, rank] in MessagePack"};
  }
  return std::move(reader.batch);
}

std::string encode_kv_events(const KvEventBatch& batch) {
  const auto signed_hash = [](KvBlockHash hash) { return static_cast<int64_t>(hash); };
  Json events = Json::array();
  for (const KvEvent& event : batch.events) {
    Json hashes = Json::array();
    for (const KvBlockHash hash : event.hashes) hashes.push_back(signed_hash(hash));
    const Json medium = event.medium.empty() ? Json() : Json(event.medium);
    Json places = Json::array();
    switch (event.kind) {
      case KvEvent::Kind::kStored:
        places = Json::array({"BlockStored", hashes, event.parent ? Json(signed_hash(*event.parent)) : Json(),
                              event.token_ids, event.block_size, Json(), medium});
        // lora_name, extra_keys, group_idx, kv_cache_spec_kind
        if (event.group || event.keyed) {
          places.insert(places.end(), {Json(), event.keyed ? Json::array({"extra_key"}) : Json()});
        }
        if (event.group) {
          places.push_back(*event.group);
          if (!event.group_kind.empty()) places.push_back(event.group_kind);
        }
        break;
      case KvEvent::Kind::kRemoved:
        places = Json::array({"BlockRemoved", hashes, medium});
        if (event.group) places.push_back(*event.group);
        break;
      case KvEvent::Kind::kCleared:
        places = Json::array({"AllBlocksCleared"});
        break;
    }
    events.push_back(std::move(places));
  }
  std::string out;
  Json::to_msgpack(Json::array({batch.timestamp, events, batch.dp_rank ? Json(*batch.dp_rank) : Json()}), out);
  return out;
}

}  // namespace sluice::protocol

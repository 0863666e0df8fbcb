#include "engine/codec.h"

#include <bit>
#include <cstring>
#include <type_traits>

namespace sluice::engine {
namespace {

static_assert(std::endian::native == std::endian::little, "frames are written in memory order");

constexpr uint16_t kMagic = 0x534c;  // "SL"
constexpr uint8_t kVersion = 1;

// Writes and reads have one description: fields(visitor, message) lists a message's members in order, and the visitor
// is a Writer or a Reader.
class Writer {
 public:
  explicit Writer(std::string& out) : out_(out) {}

  template <class T>
  void scalar(const T& value) {
    const size_t at = out_.size();
    out_.resize(at + sizeof(T));
    std::memcpy(out_.data() + at, &value, sizeof(T));
  }
  void flag(bool value) { scalar(static_cast<uint8_t>(value)); }
  template <class E>
  void enumeration(const E& value, E /*last*/) {
    scalar(static_cast<uint8_t>(value));
  }
  void text(const std::string& value) {
    scalar(static_cast<uint32_t>(value.size()));
    out_ += value;
  }
  template <class T>
  void scalars(const std::vector<T>& values) {
    scalar(static_cast<uint32_t>(values.size()));
    const size_t at = out_.size();
    out_.resize(at + values.size() * sizeof(T));
    if (!values.empty()) std::memcpy(out_.data() + at, values.data(), values.size() * sizeof(T));
  }
  template <class T, class Each>
  void list(const std::vector<T>& values, size_t /*min_bytes*/, Each each) {
    scalar(static_cast<uint32_t>(values.size()));
    for (const auto& value : values) each(*this, value);
  }
  template <class T, class Each>
  void optional(const std::optional<T>& value, Each each) {
    flag(value.has_value());
    if (value) each(*this, *value);
  }
  void biases(const std::map<int32_t, double>& values) {
    scalar(static_cast<uint32_t>(values.size()));
    for (const auto& [token, bias] : values) {
      scalar(token);
      scalar(bias);
    }
  }

 private:
  std::string& out_;
};

class Reader {
 public:
  explicit Reader(std::string_view in) : in_(in) {}

  bool ok() const { return ok_; }
  bool done() const { return ok_ && in_.empty(); }

  template <class T>
  void scalar(T& value) {
    static_assert(std::is_arithmetic_v<T>);
    if (take(sizeof(T))) {
      std::memcpy(&value, in_.data(), sizeof(T));
      in_.remove_prefix(sizeof(T));
    }
  }
  void flag(bool& value) {
    uint8_t byte = 0;
    scalar(byte);
    if (byte > 1) ok_ = false;
    value = byte == 1;
  }
  template <class E>
  void enumeration(E& value, E last) {
    uint8_t byte = 0;
    scalar(byte);
    if (byte > static_cast<uint8_t>(last)) {
      ok_ = false;
    } else {
      value = static_cast<E>(byte);
    }
  }
  void text(std::string& value) {
    const size_t n = count(1);
    if (!ok_) return;
    value.assign(in_.substr(0, n));
    in_.remove_prefix(n);
  }
  template <class T>
  void scalars(std::vector<T>& values) {
    const size_t n = count(sizeof(T));
    if (!ok_) return;
    values.resize(n);
    if (n > 0) std::memcpy(values.data(), in_.data(), n * sizeof(T));
    in_.remove_prefix(n * sizeof(T));
  }
  // `min_bytes`: of one element. So a count can never ask for more memory than the frame justifies.
  template <class T, class Each>
  void list(std::vector<T>& values, size_t min_bytes, Each each) {
    const size_t n = count(min_bytes);
    if (!ok_) return;
    values.resize(n);
    for (auto& value : values) {
      each(*this, value);
      if (!ok_) return;
    }
  }
  template <class T, class Each>
  void optional(std::optional<T>& value, Each each) {
    bool present = false;
    flag(present);
    if (ok_ && present) each(*this, value.emplace());
  }
  void biases(std::map<int32_t, double>& values) {
    const size_t n = count(sizeof(int32_t) + sizeof(double));
    for (size_t i = 0; ok_ && i < n; ++i) {
      int32_t token = 0;
      double bias = 0;
      scalar(token);
      scalar(bias);
      values[token] = bias;
    }
  }

 private:
  bool take(size_t bytes) {
    if (in_.size() < bytes) ok_ = false;
    return ok_;
  }
  size_t count(size_t element_bytes) {
    uint32_t n = 0;
    scalar(n);
    if (ok_ && n > in_.size() / element_bytes) ok_ = false;
    return ok_ ? n : 0;
  }

  std::string_view in_;
  bool ok_ = true;
};

constexpr auto kText = [](auto& v, auto& value) { v.text(value); };
constexpr auto kScalar = [](auto& v, auto& value) { v.scalar(value); };

// M is const for a Writer.
template <class V, class M>
void logprob_fields(V& v, M& m) {
  v.scalar(m.logprob);
  v.scalar(m.token_id);
}
constexpr auto kLogprob = [](auto& v, auto& value) { logprob_fields(v, value); };

template <class V, class M>
void position_fields(V& v, M& m) {
  v.optional(m.chosen, kLogprob);
  v.list(m.top, 8, kLogprob);
  v.list(m.requested, 8, kLogprob);
}
constexpr auto kPosition = [](auto& v, auto& value) { position_fields(v, value); };

template <class V, class M>
void sampling_fields(V& v, M& m) {
  v.scalar(m.max_new_tokens);
  v.scalar(m.min_new_tokens);
  v.scalar(m.temperature);
  v.scalar(m.top_p);
  v.scalar(m.top_k);
  v.scalar(m.min_p);
  v.scalar(m.frequency_penalty);
  v.scalar(m.presence_penalty);
  v.scalar(m.repetition_penalty);
  v.list(m.stop, 4, kText);
  v.scalars(m.stop_token_ids);
  v.flag(m.ignore_eos);
  v.optional(m.seed, kScalar);
  v.biases(m.logit_bias);
  v.enumeration(m.grammar_kind, GrammarKind::kStructuralTag);
  v.text(m.grammar);
  v.text(m.grammar_field);
  v.scalar(m.grammar_after);
  v.list(m.stop_regex, 4, kText);
}

template <class M, class T>
concept Is = std::is_same_v<std::remove_const_t<M>, T>;

template <class V, Is<GenerateRequest> M>
void fields(V& v, M& m) {
  v.text(m.rid);
  v.scalars(m.input_ids);
  sampling_fields(v, m.sampling);
  v.scalar(m.stream_interval);
  v.flag(m.return_logprob);
  v.scalar(m.logprob_start_len);
  v.scalar(m.top_logprobs_num);
  v.scalars(m.token_ids_logprob);
  v.text(m.extra_key);
  v.optional(m.priority, kScalar);
  v.text(m.routing_key);
  v.flag(m.embed);
  v.flag(m.return_hidden_states);
  v.flag(m.return_routed_experts);
  v.scalars(m.input_embeds);
  v.flag(m.is_health_check);
  v.scalar(m.dispatch_seq);
}

template <class V, Is<AbortRequest> M>
void fields(V& v, M& m) {
  v.text(m.rid);
  v.flag(m.all);
}

template <class V, Is<ControlRequest> M>
void fields(V& v, M& m) {
  v.scalar(m.id);
  v.enumeration(m.kind, ControlKind::kShutdown);
  v.text(m.text);
}

template <class V, Is<WakeRequest> M>
void fields(V& v, M& m) {
  v.scalar(m.work);
}

template <class V, class M>
void output_fields(V& v, M& m) {
  v.text(m.rid);
  v.scalars(m.new_ids);
  v.enumeration(m.finish.kind, FinishKind::kAbort);
  v.scalar(m.finish.matched_token);
  v.text(m.finish.matched_string);
  v.text(m.finish.message);
  v.scalar(m.finish.status_code);
  v.scalar(m.prompt_tokens);
  v.scalar(m.completion_tokens);
  v.scalar(m.cached_tokens);
  v.scalar(m.retractions);
  v.scalar(m.times.begun_unix_nanos);
  v.scalar(m.times.prefilled_unix_nanos);
  v.scalar(m.times.queue);
  v.scalar(m.times.prefill);
  v.list(m.input_logprobs, 9, kPosition);
  v.list(m.output_logprobs, 9, kPosition);
  v.scalars(m.embedding);
  v.scalars(m.hidden_states);
  v.scalars(m.routed_experts);
}
constexpr auto kOutput = [](auto& v, auto& value) { output_fields(v, value); };

template <class V, Is<OutputBatch> M>
void fields(V& v, M& m) {
  v.list(m.outputs, 105, kOutput);
}

template <class V, Is<RankReady> M>
void fields(V& v, M& m) {
  v.scalar(m.max_total_num_tokens);
  v.scalar(m.max_req_input_len);
  v.scalar(m.max_running_requests);
  v.scalar(m.context_length);
  v.scalar(m.vocab_size);
  v.scalar(m.weight_bytes);
  v.scalar(m.kv_bytes);
  v.scalar(m.kv_bytes_per_token);
  v.text(m.dtype);
  v.scalar(m.load_seconds);
  v.scalar(m.startup_seconds);
  v.scalar(m.planned_bytes);
}

template <class V, Is<RankProgress> M>
void fields(V& v, M& m) {
  v.scalar(m.share);
  v.text(m.what);
}

template <class V, Is<RankFailed> M>
void fields(V& v, M& m) {
  v.text(m.cause);
}

template <class V, Is<ControlReply> M>
void fields(V& v, M& m) {
  v.scalar(m.id);
  v.flag(m.ok);
  v.text(m.message);
}

template <class V, Is<moe::RankTokens> M>
void fields(V& v, M& m) {
  v.scalars(m.layers);
  v.scalar(m.ranks);
  v.scalars(m.tokens);
}

// Word by word: both ends are of one version, or the hosts would not have met.
template <class V, Is<LoadReport> M>
void fields(V& v, M& m) {
  static_assert(std::is_trivially_copyable_v<LoadSnapshot> && sizeof(LoadSnapshot) % 8 == 0);
  std::array<uint64_t, sizeof(LoadSnapshot) / 8> words;
  std::memcpy(words.data(), &m.load, sizeof(words));
  for (uint64_t& word : words) v.scalar(word);
  if constexpr (!std::is_const_v<M>) std::memcpy(static_cast<void*>(&m.load), words.data(), sizeof(words));
}

Writer start_frame(std::string& out, size_t kind) {
  Writer writer(out);
  writer.scalar(kMagic);
  writer.scalar(kVersion);
  writer.scalar(static_cast<uint8_t>(kind));
  return writer;
}

// The kind of the frame.
Result<size_t> read_head(Reader& reader) {
  uint16_t magic = 0;
  uint8_t version = 0;
  uint8_t kind = 0;
  reader.scalar(magic);
  reader.scalar(version);
  reader.scalar(kind);
  if (!reader.ok() || magic != kMagic) return Error{ErrorCode::kProtocol, "not a frame of this program"};
  if (version != kVersion) {
    return Error{ErrorCode::kProtocol, fmt::format("frame of version {}, this program speaks {}", version, kVersion)};
  }
  return size_t{kind};
}

template <class Variant, size_t I = 0>
Result<Variant> read_variant(Reader& reader, size_t kind) {
  if constexpr (I == std::variant_size_v<Variant>) {
    return Error{ErrorCode::kProtocol, fmt::format("frame of unknown kind {}", kind)};
  } else {
    if (kind != I) return read_variant<Variant, I + 1>(reader, kind);
    std::variant_alternative_t<I, Variant> message;
    fields(reader, message);
    if (!reader.done()) {
      return Error{ErrorCode::kProtocol, fmt::format("malformed frame of kind {}: {}", kind,
                                                     reader.ok() ? "bytes left over" : "cut short or out of range")};
    }
    return Variant(std::in_place_index<I>, std::move(message));
  }
}

}  // namespace

std::string encode(const ToRank& message) {
  std::string out;
  Writer writer = start_frame(out, message.index());
  std::visit([&](const auto& m) { fields(writer, m); }, message);
  return out;
}

std::string encode(const RankFrame& frame) {
  std::string out;
  Writer writer = start_frame(out, frame.message.index());
  writer.scalar(frame.process);
  writer.scalar(frame.incarnation);
  std::visit([&](const auto& m) { fields(writer, m); }, frame.message);
  return out;
}

Result<ToRank> decode_to_rank(std::string_view frame) {
  Reader reader(frame);
  SLUICE_TRY(const size_t kind, read_head(reader));
  return read_variant<ToRank>(reader, kind);
}

Result<RankFrame> decode_from_rank(std::string_view frame) {
  Reader reader(frame);
  SLUICE_TRY(const size_t kind, read_head(reader));
  RankFrame out;
  reader.scalar(out.process);
  reader.scalar(out.incarnation);
  SLUICE_TRY(out.message, read_variant<FromRank>(reader, kind));
  return out;
}

}  // namespace sluice::engine

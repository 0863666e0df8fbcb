#include "net/wire.h"

#include <algorithm>
#include <boost/beast/http/basic_parser.hpp>
#include <boost/beast/http/error.hpp>
#include <cstring>

namespace sluice::net {

// What accept_framing() needs to know, whichever the kind.
struct HeadFacts {
  boost::system::error_code error;
  int minor_version = 1;
  int hosts = 0;
  bool transfer_encoding = false;
  bool other_coding = false;
  bool keep_alive = false;
  bool chunked = false;
  std::optional<uint64_t> content_length;
};

namespace {

namespace http = boost::beast::http;
using BeastView = boost::beast::string_view;
using BeastError = boost::system::error_code;

// Beast's grammar, with the fields copied out. Only heads pass through it, so the body's callbacks are never called.
template <bool isRequest>
class HeadParser final : public http::basic_parser<isRequest> {
 public:
  explicit HeadParser(RequestHead* request, ResponseHead* response) : request_(request), response_(response) {
    this->header_limit(UINT32_MAX);
    this->body_limit(boost::none);
  }

  Headers& headers() { return isRequest ? request_->headers : response_->headers; }
  int transfer_encodings = 0;
  bool other_coding = false;
  int hosts = 0;
  int minor_version = 1;

 private:
  void on_request_impl(http::verb, BeastView method, BeastView target, int version, BeastError&) override {
    request_->method.assign(method.data(), method.size());
    request_->target.assign(target.data(), target.size());
    minor_version = version % 10;
  }
  void on_response_impl(int code, BeastView reason, int version, BeastError&) override {
    response_->status = code;
    response_->reason.emplace(reason.data(), reason.size());
    minor_version = version % 10;
  }
  void on_field_impl(http::field field, BeastView name, BeastView value, BeastError&) override {
    if (field == http::field::transfer_encoding) {
      ++transfer_encodings;
      other_coding = other_coding || !iequals({value.data(), value.size()}, "chunked");
    } else if (field == http::field::host) {
      ++hosts;
    }
    headers().add(std::string(name.data(), name.size()), std::string(value.data(), value.size()));
  }
  void on_header_impl(BeastError&) override {}
  void on_body_init_impl(const boost::optional<uint64_t>&, BeastError&) override {}
  size_t on_body_impl(BeastView data, BeastError&) override { return data.size(); }
  void on_chunk_header_impl(uint64_t, BeastView, BeastError&) override {}
  size_t on_chunk_body_impl(uint64_t, BeastView data, BeastError&) override { return data.size(); }
  void on_finish_impl(BeastError&) override {}

  RequestHead* request_;
  ResponseHead* response_;
};

// Whether a byte is below ' '; eight at a time, as there hardly ever is one.
bool has_control(std::string_view text) {
  constexpr uint64_t kOnes = ~uint64_t{0} / 255;
  size_t at = 0;
  for (; at + 8 <= text.size(); at += 8) {
    uint64_t word;
    std::memcpy(&word, text.data() + at, 8);
    if (((word - kOnes * ' ') & ~word & kOnes << 7) != 0) return true;
  }
  return std::ranges::any_of(text.substr(at), [](char c) { return static_cast<unsigned char>(c) < ' '; });
}

int hex_value(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

bool persistent(int minor_version, const Headers& headers) {
  return minor_version >= 1 ? !headers.has_token("Connection", "close") : headers.has_token("Connection", "keep-alive");
}

template <bool isRequest>
HeadFacts read_head(std::string_view head, RequestHead* request, ResponseHead* response) {
  HeadParser<isRequest> parser(request, response);
  HeadFacts facts;
  parser.put(boost::asio::const_buffer(head.data(), head.size()), facts.error);
  if (!facts.error && !parser.is_header_done()) facts.error = http::error::partial_message;
  if (facts.error) return facts;
  facts.minor_version = parser.minor_version;
  facts.hosts = parser.hosts;
  facts.transfer_encoding = parser.transfer_encodings > 0;
  facts.other_coding = parser.other_coding || parser.transfer_encodings > 1;
  // Beast lets a response without a length end the connection; whether it has a body at all is decided later.
  facts.keep_alive =
      parser.keep_alive() || (!isRequest && parser.need_eof() && persistent(facts.minor_version, parser.headers()));
  facts.chunked = parser.chunked();
  if (const auto length = parser.content_length()) facts.content_length = *length;
  return facts;
}

}  // namespace

MessageParser::MessageParser(Kind kind, size_t max_head_bytes) : kind_(kind), max_head_bytes_(max_head_bytes) {}

MessageParser::~MessageParser() = default;

void MessageParser::reset(bool no_body) {
  no_body_ = no_body;
  framing_ = Framing::kHead;
  head_start_ = line_start_ = scanned_ = 0;
  remaining_ = 0;
  chunk_ = Chunk::kSize;
  size_digits_ = 0;
  trailer_bytes_ = 0;
  trailer_line_.clear();
  trailers_.clear();
  request_.headers.clear();
  response_.headers.clear();
  keep_alive_ = chunked_ = false;
  content_length_.reset();
}

MessageParser::Status MessageParser::fail(int status, ErrorCode code, std::string message) {
  error_status_ = status;
  error_ = Error{code, std::move(message)};
  keep_alive_ = false;
  return Status::kError;
}

MessageParser::Status MessageParser::parse_head(std::string_view data, size_t& used) {
  used = 0;
  for (;;) {
    const void* found = std::memchr(data.data() + scanned_, '\n', data.size() - scanned_);
    const size_t end =
        found == nullptr ? data.size() : static_cast<size_t>(static_cast<const char*>(found) - data.data());
    if (end >= max_head_bytes_) {
      return fail(431, ErrorCode::kTooLarge, fmt::format("the head is longer than {} bytes", max_head_bytes_));
    }
    scanned_ = end;
    if (found == nullptr) return Status::kNeedMore;
    if (end == line_start_ || data[end - 1] != '\r') {
      return fail(400, ErrorCode::kProtocol, "a line of the head ends without a carriage return");
    }
    scanned_ = end + 1;
    const bool blank = end == line_start_ + 1;
    const bool first = line_start_ == head_start_;
    if (!blank && !first && (data[line_start_] == ' ' || data[line_start_] == '\t')) {
      return fail(400, ErrorCode::kProtocol, "folded header lines are not accepted");
    }
    line_start_ = end + 1;
    if (!blank) continue;
    if (!first) break;
    head_start_ = line_start_;  // blank lines before a message are skipped (RFC 9112, 2.2)
  }
  used = line_start_;
  return accept_head(data.substr(head_start_, line_start_ - head_start_));
}

MessageParser::Status MessageParser::accept_head(std::string_view head) {
  const HeadFacts facts =
      kind_ == Kind::kRequest ? read_head<true>(head, &request_, nullptr) : read_head<false>(head, nullptr, &response_);
  const auto& error = facts.error;
  if (error == http::error::bad_version && head.starts_with("PRI * HTTP/2")) {
    return fail(505, ErrorCode::kProtocol, "HTTP/2 is not spoken here: use HTTP/1.1");
  }
  if (error == http::error::bad_version) {
    return fail(505, ErrorCode::kProtocol, "the protocol version is neither HTTP/1.1 nor HTTP/1.0");
  }
  if (error == http::error::bad_transfer_encoding || error == http::error::bad_content_length ||
      error == http::error::multiple_content_length) {
    return fail(400, ErrorCode::kProtocol, "the length of the body is ambiguous: " + error.message());
  }
  if (error) return fail(400, ErrorCode::kProtocol, "the head cannot be parsed: " + error.message());
  return accept_framing(facts);
}

MessageParser::Status MessageParser::accept_framing(const HeadFacts& facts) {
  request_.minor_version = facts.minor_version;
  if (facts.other_coding) {
    return fail(501, ErrorCode::kProtocol, "of the transfer codings only 'chunked' is known");
  }
  if (facts.transfer_encoding && facts.minor_version == 0) {
    return fail(400, ErrorCode::kProtocol, "HTTP/1.0 has no Transfer-Encoding");
  }
  if (kind_ == Kind::kRequest && (facts.hosts > 1 || (facts.hosts == 0 && facts.minor_version >= 1))) {
    return fail(400, ErrorCode::kProtocol, "exactly one Host field is needed");
  }
  keep_alive_ = facts.keep_alive;
  chunked_ = facts.chunked;
  content_length_ = facts.content_length;
  remaining_ = content_length_.value_or(0);
  const int status = response_.status;
  const bool bodiless = kind_ == Kind::kResponse && (no_body_ || status / 100 == 1 || status == 204 || status == 304);
  if (bodiless) {
    framing_ = Framing::kDone;
  } else if (chunked_) {
    framing_ = Framing::kChunked;
  } else if (content_length_ || kind_ == Kind::kRequest) {
    framing_ = remaining_ > 0 ? Framing::kLength : Framing::kDone;
  } else {
    framing_ = Framing::kUntilClose;
    keep_alive_ = false;
  }
  return Status::kDone;
}

MessageParser::Status MessageParser::parse_body(char* data, size_t size, size_t& used, std::string_view& body) {
  used = 0;
  body = {};
  switch (framing_) {
    case Framing::kLength:
      used = static_cast<size_t>(std::min<uint64_t>(size, remaining_));
      remaining_ -= used;
      body = {data, used};
      if (remaining_ == 0) framing_ = Framing::kDone;
      break;
    case Framing::kUntilClose:
      used = size;
      body = {data, size};
      break;
    case Framing::kChunked:
      return parse_chunked(data, size, used, body);
    case Framing::kHead:
    case Framing::kDone:
      break;
  }
  return done() ? Status::kDone : Status::kNeedMore;
}

MessageParser::Status MessageParser::parse_chunked(char* data, size_t size, size_t& used, std::string_view& body) {
  char* out = nullptr;
  size_t out_size = 0;
  size_t at = 0;
  while (at < size && framing_ != Framing::kDone) {
    if (chunk_ != Chunk::kData) {
      if (const char* problem = chunk_control(data[at])) return fail(400, ErrorCode::kProtocol, problem);
      ++at;
      continue;
    }
    const auto n = static_cast<size_t>(std::min<uint64_t>(size - at, remaining_));
    // The first piece stays where it is; later ones move down over the framing between them.
    if (out == nullptr) {
      out = data + at;
    } else {
      std::memmove(out + out_size, data + at, n);
    }
    out_size += n;
    at += n;
    remaining_ -= n;
    if (remaining_ == 0) chunk_ = Chunk::kDataCr;
  }
  used = at;
  body = {out, out_size};
  return done() ? Status::kDone : Status::kNeedMore;
}

// One character of the framing of a chunked body (RFC 9112, 7.1). Extensions are read over. Returns what is wrong with
// it, or null.
const char* MessageParser::chunk_control(char c) {
  constexpr size_t kMaxExtrasBytes = 16 * 1024;  // extensions of one chunk, or trailers
  switch (chunk_) {
    case Chunk::kSize:
      if (const int digit = hex_value(c); digit >= 0) {
        if (++size_digits_ > 15) return "a chunk size has more than 15 digits";
        remaining_ = remaining_ * 16 + static_cast<uint64_t>(digit);
        return nullptr;
      }
      if (size_digits_ == 0) return "a chunk size is not a hexadecimal number";
      size_digits_ = 0;
      trailer_bytes_ = 0;
      if (c == '\r') {
        chunk_ = Chunk::kSizeLf;
      } else if (c == ';' || c == ' ' || c == '\t') {
        chunk_ = Chunk::kExtension;
      } else {
        return "a chunk size is not a hexadecimal number";
      }
      return nullptr;
    case Chunk::kExtension:
      if (++trailer_bytes_ > kMaxExtrasBytes) return "the extensions of a chunk are too long";
      if (c == '\n') return "a chunk header ends without a carriage return";
      if (c == '\r') chunk_ = Chunk::kSizeLf;
      return nullptr;
    case Chunk::kSizeLf:
      if (c != '\n') return "a chunk header ends without a line feed";
      chunk_ = remaining_ > 0 ? Chunk::kData : Chunk::kTrailerStart;
      trailer_bytes_ = 0;
      return nullptr;
    case Chunk::kDataCr:
      if (c != '\r') return "a chunk is longer than its size";
      chunk_ = Chunk::kDataLf;
      return nullptr;
    case Chunk::kDataLf:
      if (c != '\n') return "a chunk is longer than its size";
      chunk_ = Chunk::kSize;
      return nullptr;
    case Chunk::kTrailerStart:
      if (c == '\n') return "a trailer line ends without a carriage return";
      chunk_ = c == '\r' ? Chunk::kLastLf : Chunk::kTrailer;
      trailer_line_.clear();
      if (c != '\r') trailer_line_ += c;
      return nullptr;
    case Chunk::kTrailer:
      if (++trailer_bytes_ > kMaxExtrasBytes) return "the trailers are too long";
      if (c == '\n') return "a trailer line ends without a carriage return";
      if (c == '\r') {
        chunk_ = Chunk::kTrailerLf;
      } else {
        trailer_line_ += c;
      }
      return nullptr;
    case Chunk::kTrailerLf:
      if (c != '\n') return "a trailer line ends without a line feed";
      if (!take_trailer()) return "a trailer line is not a field";
      chunk_ = Chunk::kTrailerStart;
      return nullptr;
    case Chunk::kLastLf:
      if (c != '\n') return "a chunked body ends without a line feed";
      framing_ = Framing::kDone;
      return nullptr;
    case Chunk::kData:
      break;
  }
  return "a chunk is out of order";
}

// The line as a field; false if it is none.
bool MessageParser::take_trailer() {
  const std::string_view line = trailer_line_;
  const size_t colon = line.find(':');
  if (colon == 0 || colon == std::string_view::npos) return false;
  const std::string_view name = line.substr(0, colon);
  const bool is_token = std::ranges::all_of(name, [](char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
           std::string_view("!#$%&'*+-.^_`|~").find(c) != std::string_view::npos;
  });
  if (!is_token) return false;
  std::string_view value = line.substr(colon + 1);
  while (!value.empty() && (value.front() == ' ' || value.front() == '\t')) value.remove_prefix(1);
  while (!value.empty() && (value.back() == ' ' || value.back() == '\t')) value.remove_suffix(1);
  trailers_.add(std::string(name), std::string(value));
  return true;
}

bool MessageParser::end_of_stream() {
  if (framing_ == Framing::kUntilClose) framing_ = Framing::kDone;
  return done();
}

void append_field(std::string& out, std::string_view name, std::string_view value) {
  out.append(name).append(": ");
  const auto start = out.size();
  out.append(value);
  if (has_control(value)) {
    std::replace_if(
        out.begin() + static_cast<ptrdiff_t>(start), out.end(),
        [](char c) { return static_cast<unsigned char>(c) < ' ' && c != '\t'; }, ' ');
  }
  out.append("\r\n");
}

std::string last_chunk(const Headers& trailers) {
  std::string out = "0\r\n";
  for (const auto& [name, value] : trailers) {
    if (!is_framing_field(name) && !is_hop_by_hop(name)) append_field(out, name, value);
  }
  out += "\r\n";
  return out;
}

bool is_framing_field(std::string_view name) {
  switch (name.size()) {
    case 10:
      return iequals(name, "connection") || iequals(name, "keep-alive");
    case 14:
      return iequals(name, "content-length");
    case 17:
      return iequals(name, "transfer-encoding");
    default:
      return false;
  }
}

}  // namespace sluice::net

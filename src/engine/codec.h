// Binary frames for the messages between the front process and its ranks. Little-endian, versioned, bounds-checked: a
// frame that is malformed, cut short or of another version is an Error (kProtocol), whatever its bytes. Private to one
// instance: both sides are the same binary.
//
//   frame  = magic u16, version u8, kind u8 (index of the variant), [process i64, incarnation u64: from ranks only],
//            fields in the order of messages.h
//   fields = i64, u64, f64 as 8 bytes; i32, f32 as 4; bool and enums as 1; strings and vectors as u32 count + elements;
//            optional as bool + value
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/result.h"
#include "engine/messages.h"

namespace sluice::engine {

struct RankFrame {
  int64_t process = 0;  // of the server's ranks
  uint64_t incarnation = 0;
  FromRank message;
};

std::string encode(const ToRank& message);
std::string encode(const RankFrame& frame);
Result<ToRank> decode_to_rank(std::string_view frame);
Result<RankFrame> decode_from_rank(std::string_view frame);

}  // namespace sluice::engine

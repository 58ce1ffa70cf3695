// What the convolutions of both memory orders share.
#pragma once
#include "../common/runs.h"
#include "../common/silu.h"
#include "params.h"

namespace {

using vmddpm::ConvGradParams;
using vmddpm::ConvParams;
using vmddpm::ConvUpdateParams;
using vmddpm::View;

}  // namespace

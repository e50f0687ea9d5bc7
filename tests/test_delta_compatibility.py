"""Promise: a delta that a release wrote is read the same way by every later one, and by the decoder that was written from the documents alone."""

from __future__ import annotations

import base64
from pathlib import Path

import reference_decoder
import rows
from sources import safetensors_bytes

from modelcodec import api

HALF, SINGLE = rows.gaussian(320, "BF16", 3), rows.gaussian(240, "F32", 4)
FINE = {
    "half": ("BF16", (16, 20), rows.base_of(HALF).tobytes()),
    "single": ("F32", (12, 20), (SINGLE + rows.numbers(240, 1 << 14, 4, 5)).tobytes()),
    "same": ("BF16", (320,), HALF.tobytes()),
}
BASE = {"half": ("BF16", (16, 20), HALF.tobytes()), "single": ("F32", (12, 20), SINGLE.tobytes()), "same": ("BF16", (320,), HALF.tobytes())}

DELTA = base64.b85decode(
    'fB^si00000dm>+7ZDn*}WMOn+Utc0Rdm?RbWMyn)Z)9a-B03^4E;Ay1EFxcDZEs{{Y-4X^Wn*7oE@WwPWn*-2a(N;;dm?0Xd2nSSIwDm#A}k_vXkl<=B05_!IWk==B4lB7VP9`%W^-k9b0RuhFf1'
    '`SGF^QvB41x^Z)9a`V{c?-V_#n`b8BU6Wpr<DB075_WOR9OWg<EvRX8FnB6DbAaAhJoTQM~<T`VGGVRT_%Z)Rq5Wpr~QI$JS0GAuJRG+lixB4}Z3W+FO!B4l)VaAhJoB2_pdEFyDgVQ^(4I$JU|H'
    'eD<tWMOn+UvFk+b7gdMB05_$G&C$WFfd(xEFyDhZf9&|B075_WOR9OWg<EvRX8FnB6DbAaAhJoTQxQ~T`VGGVRT_%Z)Rq5Wpr~QI$Jg{Ff1`KHaJ~<EFyDZZDk@ldm?0Xd2nSSIwDm#A}k_vXkl<'
    '=B05_!HeD<tWMOn+UvFk+b7gdMB05_!F*Z0XF)=taU44BZmdt|=Nph*1aca+`*4M9F0-0^Q1fQwB9ia??*i6REdZiNq0T5zgb7d}bVP<7?Wo~nCa&rU$0RaK!0dlY?X*9g7?5h4hl>q<*69Nzv<p'
    'HR3j1DYLx}5+7Xklz-g)<$a&uK6}`2QaWNLQ!<00bfe3={xxlkj4<akrWP26Jg{XKZC&Q({)S6$Z=v{|^XHUeyBt1QP+k0sxzR6$0(^wp9QGb75^|g)<$a&uK6}fd3x|01p5F000006aof-0hc-y'
    'a;4s`UX9^j*eKSPoG7&~{UGJN0{|jM79Fsu0}R73OqPS*S`*gVJvQ0*XkeL}$UaR@Nk9UU#C9=X1IM&&b=}p>0pS*;QD9yrwyUoTql51`MvLvpD_g#{Dp~^bnyrW-FQj{*cw}@T-_nwdfGG+9Mg*'
    '{gaxd1#6EX&nF(JE65U?i`(-e6CZ2$lO4gdgEG4aJ)I^(xeVwYeC00I;cAtWOuAR!<l8z3eiCm$mtC?z8$BqbarAS5InAS@~=DkLNq01F)V0P_NICT5d5_45oHX8^X3W2v=~I>On_0GI(23<VAb0'
    '6PFjw7{8e+TXv{ToMQJsq+iv-|Xv%Z;D9_CPuBkXxdH}z?OtG*JL%=NpiyaD-Pgg75dKp1q9ndtBDr&!rU@BH=^?Qw__<|RwU7sqfh&OnFsEo(9wd>`YC2YedBbguQwa9J51$uhd6LCQ1E0PRpHe'
    'Pbd)?i!6AS%d_>otgsA%)1*hHj(f;kicYiV}HyR9Wp|kkFBX9N^*>Euc4gdg+csZ>i=?$nTG0%k;@&ObKAtNCqB_<>xB_kmtBp)IlBOW6pAtE6mA|oLpBO)9i01GGj04)HKySPIlGOxP(TojesJi'
    '?Z3o5qg-pqK!lK%`IrC=?0>#uO9`2FL;c06G9mLy0kx^xg6Ra~>B@^DL{KEGgN;k~Xzu!m#o0o+?KfbTEA6<~531WhsRJOjz&2_i>yRzmoxbgx_Hn*X9}0ZV_M35=nZ2Ab@gb!r;}PVlWVrxc=hs'
    'e3J?HTUD?-P=m;-C*t5SjOQi+v`p};xVtsVr7xSeVq9Na$<E82=Li6(>jP}39gm3T94$yx*=W1oeicJxm%~4Gzoc0)`Cay?7Le$>!h~i@#qFAH`=OLeB);jDVCOXz>j=u%FoOENEyQMU4sZH$XXf'
    'Vtc8!dZ2|2!yp<>jvKU=6ooC?BjNPR}+w`$`L6UL-9-F>-yzg0{>kk=|rrIUG&u!8%|f^%p$s{L`uK$h`20(~$d&w8wVcD!9Y1hh%!{sO{c!mTuOXTl&cZ8NH^Agq!mUR$6@8N(`-djoZzNamVJQ'
    'FD)7QSZ)Gj#cMP9a!J%rAan77(wa)Ei=8zgiNE&LAFdZYP)`hLA^Dllf01+DwBuxVS`RqaeSFHJfNY|mR)&Gfz;P~2{8f%J}Y^AXk0^s9pIuSIo!f!43PT*tJZ8^;EW*?6z>al_ao0||4jPV(5s8'
    'w#7ozWXtUJU8FySV)+`DD000004h#T=GaaMPX)r&JJyLA|'
)
"""FINE as a delta to BASE, all three tensors; format 0.3."""


def test_it_restores(tmp_path: Path) -> None:
    (tmp_path / "base.safetensors").write_bytes(safetensors_bytes(BASE))
    (tmp_path / "packed").write_bytes(DELTA)
    api.decompress(tmp_path / "packed", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == safetensors_bytes(FINE)


def test_the_reference_decoder_restores_it() -> None:
    assert reference_decoder.restore(DELTA, {name: data for name, (_, _, data) in BASE.items()}) == safetensors_bytes(FINE)
    assert reference_decoder.read_container(DELTA).bases == ["base.safetensors"]
